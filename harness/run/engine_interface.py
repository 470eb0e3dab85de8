"""The names of package ``backends`` that the harness uses when it measures another commit.

``run --against COMMIT`` and asv run this harness on the package ``backends`` of another commit.
Harness code that runs there imports from ``backends`` through this module alone. Each name is
looked up when it is first used, in the places where it has been since commit ed412c5, the newest
place first. A name that the other commit lacks raises an ImportError, which a worker records as
``unavailable``.

To rename something in ``backends`` that is listed here: put the new place in front, and keep the
old ones. ``tests/harness/run/test_engine_interface.py`` measures ed412c5 beside the present commit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers: the present places
    from backends.agreement import TOLERANCE, Agreement, compare, finite, rel_rmse
    from backends.arithmetic import autocast
    from backends.capabilities import Kind
    from backends.contract import Backend, SparseBatch, master_dtype
    from backends.convolution_chain import (
        ChainConfig,
        ConvolutionChain,
        chain_reference,
        sorted_columns,
    )
    from backends.convolution_chain import initial as initial_chain_weights
    from backends.float64_reference import Reference, running_statistics
    from backends.float64_reference import compute_reference as network_reference
    from backends.loss import event_cross_entropy
    from backends.network import build as build_network
    from backends.network import has_reference
    from backends.network import reset as reset_network
    from backends.registry import interpreter, module_name, probe_all
    from backends.registry import load as load_backend
    from backends.single_layer import (
        LayerCall,
        SingleLayer,
        SingleLayerConfig,
        coarsened,
        layer_reference,
    )
    from backends.single_layer import initial as initial_layer_weights
    from backends.sscn.cpu.processor import peak
    from backends.uresnet import Block, EngineLayer, Level, UResNet, UResNetConfig
    from backends.weight_files import network_size
    from backends.weights import InvalidWeights, gradients
    from backends.weights import initial as initial_weights
    from backends.weights import load as load_weights

__all__ = [
    "TOLERANCE",
    "Agreement",
    "Backend",
    "Block",
    "ChainConfig",
    "ConvolutionChain",
    "EngineLayer",
    "InvalidWeights",
    "Kind",
    "LayerCall",
    "Level",
    "Reference",
    "SingleLayer",
    "SingleLayerConfig",
    "SparseBatch",
    "UResNet",
    "UResNetConfig",
    "autocast",
    "build_network",
    "chain_reference",
    "coarsened",
    "compare",
    "event_cross_entropy",
    "finite",
    "gradients",
    "has_reference",
    "initial_chain_weights",
    "initial_layer_weights",
    "initial_weights",
    "interpreter",
    "layer_reference",
    "load_backend",
    "load_weights",
    "master_dtype",
    "module_name",
    "network_reference",
    "network_size",
    "peak",
    "probe_all",
    "rel_rmse",
    "reset_network",
    "running_statistics",
    "sorted_columns",
]

PLACES: dict[str, tuple[str, ...]] = {
    # Engines by name. None of these modules imports torch.
    # (dim, device, precision, options) -> an engine that is set up
    "load_backend": ("backends.registry:load",),
    # engine's name -> its module, whose ``probe().version`` a record has
    "module_name": ("backends.registry:module_name",),
    # engine's name -> the Python that runs it
    "interpreter": ("backends.registry:interpreter",),
    # engines' names -> what each can do, measured in child processes
    "probe_all": ("backends.registry:probe_all",),
    # the kinds of layer, a StrEnum
    "Kind": ("backends.capabilities:Kind",),
    #
    # The contract. Of an engine the harness calls ``precision_readback()`` and
    # ``with_features(tensor, features)``, and hands the rest on.
    "Backend": ("backends.contract:Backend",),
    # sites, features, labels, spatial_size, batch_size, dim, to(device)
    "SparseBatch": ("backends.contract:SparseBatch",),
    # precision -> type of parameters and input features
    "master_dtype": ("backends.contract:master_dtype",),
    # (precision, device) -> the context of forward passes
    "autocast": ("backends.arithmetic:autocast",),
    # (logits, labels, batch_index, batch_size) -> the loss of a step
    "event_cross_entropy": ("backends.loss:event_cross_entropy",),
    #
    # The network. It has ``tensor(sites, features, spatial_size, batch_size)``, is called with
    # that tensor, and is a torch module.
    # (filters, depth, reps, classes); later also (in_channels, slope, eps, momentum)
    "UResNetConfig": ("backends.uresnet:UResNetConfig",),
    # (backend, config) -> the network
    "build_network": ("backends.network:build",),
    # (network, weights): return to the canonical weights
    "reset_network": ("backends.network:reset",),
    # network -> whether a float64 reference of it can be computed
    "has_reference": ("backends.network:has_reference", "backends.network:has_truth"),
    # (config, dim) -> the canonical weights of a UResNet
    "initial_weights": ("backends.weights:initial",),
    # (network, weights): copy canonical weights into a network
    "load_weights": ("backends.weights:load",),
    # weights -> (config, dim); raises InvalidWeights
    "network_size": ("backends.weight_files:network_size",),
    "InvalidWeights": ("backends.weights:InvalidWeights", "backends.weight_files:InvalidWeights"),
    # network -> canonical gradients
    "gradients": ("backends.weights:gradients",),
    #
    # A chain of convolutions: a network with a configuration (kind, count, channels).
    "ConvolutionChain": ("backends.convolution_chain:ConvolutionChain", "backends.stack:Stack"),
    "ChainConfig": ("backends.convolution_chain:ChainConfig", "backends.stack:StackConfig"),
    # config, dim -> canonical weights
    "initial_chain_weights": ("backends.convolution_chain:initial", "backends.stack:initial"),
    # features -> the same with each column sorted
    "sorted_columns": ("backends.convolution_chain:sorted_columns", "backends.stack:in_order"),
    # (config, weights, batch) -> Reference
    "chain_reference": ("backends.convolution_chain:chain_reference", "backends.stack:truth"),
    #
    # A single convolution of the UResNet.
    # (backend, config)
    "SingleLayer": ("backends.single_layer:SingleLayer", "backends.operation:Operation"),
    # of(uresnet_config, kind, level, phase); fine: channels of the batch
    "SingleLayerConfig": (
        "backends.single_layer:SingleLayerConfig",
        "backends.operation:OperationConfig",
    ),
    # (layer, batch, features, phase, arithmetic): is called, then gives result()
    "LayerCall": ("backends.single_layer:LayerCall", "backends.operation:Trial"),
    # (batch, level, depth, channels) -> the batch of a level
    "coarsened": ("backends.single_layer:coarsened", "backends.operation:coarsened"),
    # (config, dim) -> canonical weights
    "initial_layer_weights": ("backends.single_layer:initial", "backends.operation:initial"),
    # (config, weights, batch, phase) -> Reference
    "layer_reference": ("backends.single_layer:layer_reference", "backends.operation:truth"),
    #
    # The float64 reference, and the comparison with it.
    # logits, loss, gradients, statistics, method
    "Reference": ("backends.float64_reference:Reference", "backends.truth:Truth"),
    # (config, weights, batch, step=) -> Reference of a UResNet
    "network_reference": ("backends.float64_reference:compute_reference", "backends.truth:truth"),
    # network -> its canonical running means and variances
    "running_statistics": (
        "backends.float64_reference:running_statistics",
        "backends.truth:statistics",
    ),
    # max_abs, rel_rmse, argmax_agreement, grad_rel_rmse, worst_grad_rel_rmse,
    # statistics_rel_rmse, reason
    "Agreement": ("backends.agreement:Agreement",),
    # precision -> .forward, .gradient
    "TOLERANCE": ("backends.agreement:TOLERANCE",),
    # (reference, precision, logits, gradients=, statistics=) -> Agreement
    "compare": ("backends.agreement:compare",),
    # (logits, gradients) -> Agreement of a network without a reference
    "finite": ("backends.agreement:finite",),
    # (value, reference) -> relative root mean square error
    "rel_rmse": ("backends.agreement:rel_rmse",),
    #
    # For profiles, which find the parts of a network by their type.
    # kind, in_channels, out_channels, kernel_size
    "EngineLayer": ("backends.uresnet:EngineLayer", "backends.uresnet:Layer"),
    # backend, norm2.in_channels
    "Block": ("backends.uresnet:Block",),
    # backend, below, down.in_channels
    "Level": ("backends.uresnet:Level",),
    # config.in_channels
    "UResNet": ("backends.uresnet:UResNet",),
    # (rounds, double, threads) -> operations done by multiply-adds in registers
    "peak": ("backends.sscn.cpu.processor:peak", "backends.sscn.cpu:peak"),
}
"""Name here -> the places where it is or was, as ``module:attribute``, the newest first."""

if not TYPE_CHECKING:  # to a type checker, every name would be here

    def __getattr__(name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for place in PLACES[name]:
            module, _, attribute = place.partition(":")
            try:
                return getattr(importlib.import_module(module), attribute)
            except ModuleNotFoundError as error:
                if error.name is None or not module.startswith(error.name):
                    raise
            except AttributeError:
                pass
        raise ImportError(f"the engines of this commit have no {PLACES[name][0]}")
