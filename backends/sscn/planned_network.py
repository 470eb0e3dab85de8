"""The UResNet of the engine with compiled kernels: its passes are planned once.

A planned pass has the bits of a pass layer by layer. Where a plan cannot serve, for example because
a module has a hook, the layers run as in any other network; ``last_pass`` of the backend has the
reason.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count, islice, repeat
from operator import attrgetter, contains, itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from backends.sscn.coordinates import CoordinateManager
from backends.sscn.cpu.plan import Plan
from backends.sscn.deferred_layer import Rows, computed
from backends.sscn.layers import SiteTensor
from backends.sscn.norm import Norm
from backends.sscn.recording import Recording, RecordingGraph, Unplannable
from backends.uresnet import UResNet, UResNetConfig

if TYPE_CHECKING:
    from backends.sscn.adapter import Backend
    from backends.sscn.cuda.plan import LaunchPlans

PLANNED = "planned"
"""The value of ``last_pass`` after a planned pass."""

_TRAINING = itemgetter("training")
_REQUIRES_GRAD = attrgetter("requires_grad")
_VERSION = attrgetter("_version")

_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


class PlannedUResNet(UResNet):
    """A UResNet whose passes are planned: in evaluation without gradients, in training with them.

    Parameters
    ----------
    backend : Backend
        The engine, with one of the kernel sets of the CPU or with ``cuda``.
    config : UResNetConfig
        Its size.
    """

    def __init__(self, backend: Backend, config: UResNetConfig) -> None:
        super().__init__(backend, config)
        self._engine = backend
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which makes plans of its own."""
        return self.__dict__ | {"_state": None, "_plans": {}, "_refusals": {}}

    def _forget(self) -> None:
        self._state: _ModuleState | None = None
        self._plans: dict[bool, _CheckedPlan] = {}
        self._refusals: dict[bool, tuple[object, str]] = {}

    def forward(self, x: SiteTensor) -> Tensor:
        """Return the logits, (N, classes), rows in input order."""
        reason = self._reason(x)
        self._engine.last_pass = f"layer by layer: {reason}" if reason else PLANNED
        if reason:
            return super().forward(x)
        plan = self._plans[self.training].plan
        if not self.training:
            logits, _ = plan.forward(x)
            return logits
        apply: Callable[..., Tensor] = _PlannedPasses.apply
        return apply(plan, x, plan.bias, *plan.leaves)

    def _reason(self, x: SiteTensor) -> str:
        """Return why a pass cannot be planned, empty if it can; make or renew the plan."""
        training = self.training
        if torch.compiler.is_compiling():
            return "compiled"
        if torch.is_grad_enabled() != training:
            return "in training without gradients" if training else "gradients in evaluation"
        if x.coordinates.graph.observer is not None:
            return "profiled"
        if any(_HOOKS):
            return "hooks of all modules"
        reason = self._state.reason(training) if self._state else None
        if reason is None:
            self._forget()
            self._state = _ModuleState(self)
            reason = self._state.reason(training) or ""
        reason = reason or _refuse(x)
        if reason:
            return reason
        plan = self._plans.get(training)
        if plan is None or not plan.update():
            self._plans.pop(training, None)
            reason = self._make(training, x)
        return reason or self._plans[training].refuse(x)

    def _make(self, training: bool, x: SiteTensor) -> str:
        """Plan the network; return why it cannot be planned, which is kept for these weights."""
        weights = [(each.data_ptr(), each.dtype, each.requires_grad) for each in self.parameters()]
        before = self._refusals.get(training)
        if before is not None and before[0] == weights:
            return before[1]
        try:
            self._plans[training] = _CheckedPlan(self, self._plan(training, x))
        except Unplannable as error:
            self._refusals[training] = weights, str(error)
            return str(error)
        return ""

    def _plan(self, training: bool, x: SiteTensor) -> Plan | LaunchPlans:
        """Plan the network; on a GPU for the sizes of an input."""
        weights = [*self.parameters(), *self.buffers()]
        products = getattr(self._engine.graph.kernels, "products", None)
        if products is not None:
            recording = self._record(_few_sites(self._engine, self.config))
            return Plan(recording, products, weights, training)
        from backends.sscn.cuda.plan import LaunchPlans

        return LaunchPlans(self._record, weights, training, x, self.config.depth)

    def _record(self, x: SiteTensor) -> Recording:
        """Record the layers on an input, whose graph is a ``RecordingGraph``."""
        graph = x.coordinates.graph
        assert isinstance(graph, RecordingGraph)
        logits = self.apply_layers(x)
        _ = logits.unbiased  # records the last layer
        return Recording(x, logits, graph.layers)


class _PlannedPasses(torch.autograd.Function):
    """From the parameters of a network to its logits, in one call for each direction."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x: SiteTensor, bias: Tensor | None, *leaves: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        logits, passed = plan.forward(x)
        ctx.plan, ctx.x = plan, x
        # Saved tensors are freed after the backward pass, and the arrays of the pass with them.
        holder = torch.empty(0)
        holder.planned_pass = passed  # type: ignore[attr-defined]
        ctx.save_for_backward(holder, *leaves)
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        holder, *leaves = ctx.saved_tensors
        if grad is None:
            return (None,) * (3 + len(leaves))
        found = ctx.plan.backward(holder.planned_pass, ctx.x, grad)
        to_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return None, None, to_bias, *(found.get(slot) for slot in range(len(leaves)))


def _few_sites(engine: Backend, config: UResNetConfig) -> SiteTensor:
    """Return an input on the sites of ``recording_sites``."""
    kernels = engine.graph.kernels
    channels = max(2 * config.channels(config.depth - 1), config.classes, config.in_channels)
    sites, size = recording_sites(engine.dim, config.depth, channels)
    keys, order = kernels.sort_sites(sites, size)
    graph = RecordingGraph(kernels)
    coordinates = CoordinateManager(keys, order, size, engine.dim, graph)
    return SiteTensor(coordinates, 0, (Rows(torch.zeros(len(sites), config.in_channels)),))


def recording_sites(dim: int, depth: int, channels: int) -> tuple[Tensor, int]:
    """Return sites whose number at each level is another prime above a number of channels.

    Returns
    -------
    sites : Tensor
        (N, 1 + dim) int32.
    size : int
        Voxels per side.
    """
    least = max(channels, 3**dim) + 1
    primes = (n for n in count(least) if all(n % d for d in range(2, int(n**0.5) + 1)))
    number, *finer = islice(primes, depth)
    side = next(side for side in count(1) if side**dim >= number)
    sites = torch.cartesian_prod(*[torch.arange(side)] * dim).reshape(-1, dim)[:number]
    for number in finer:
        children = 2 * sites
        second = children[: number - len(sites)].clone()
        second[:, -1] += 1
        sites = torch.cat([children, second])
    batch = torch.zeros(len(sites), 1, dtype=sites.dtype)
    return torch.cat([batch, sites], 1).to(torch.int32), side * 2 ** (depth - 1)


class _ModuleState:
    """The modules of a network, for comparison with a later state."""

    def __init__(self, network: nn.Module) -> None:
        self._modules = list(network.named_modules())
        modules = [each for _, each in self._modules]
        self._attributes = [each.__dict__ for each in modules]
        self._children = [each._modules for each in modules if each._modules]
        self._identities = _identities(self._children)
        self._hooks = {
            training: [hooks for each in modules for hooks in _hooks_of(each, training)]
            for training in (False, True)
        }

    def reason(self, training: bool) -> str | None:
        """Return why the modules must be called, empty if they need not be.

        Returns
        -------
        str or None
            None if a module has been replaced, added or removed.
        """
        if _identities(self._children) != self._identities:
            return None
        attributes = self._attributes
        modes = list(map(_TRAINING, attributes))
        if (
            not any(self._hooks[training])
            and modes.count(training) == len(modes)
            and not any(map(contains, attributes, repeat("forward")))
        ):
            return ""
        found = (self._named(name, module, training) for name, module in self._modules)
        return next(filter(None, found))

    def _named(self, name: str, module: nn.Module, training: bool) -> str:
        """Return what a module has that a plan cannot run."""
        name = name or "the network"
        if module.training != training:
            return f"{name} is in {'evaluation' if training else 'training'}"
        if "forward" in module.__dict__:
            return f"{name} has a forward of its own"
        return f"{name} has a hook" if any(_hooks_of(module, training)) else ""


def _identities(dictionaries: list[dict[str, Any]]) -> list[int]:
    """Return the identities of all values of dictionaries; it runs for every pass."""
    return list(map(id, chain.from_iterable(map(dict.values, dictionaries))))


def _hooks_of(module: nn.Module, training: bool) -> list[dict[Any, Any]]:
    """Return the hooks that a pass of a module calls, by their kinds."""
    hooks = [module._forward_hooks, module._forward_pre_hooks]
    if training:
        hooks += [module._backward_hooks, module._backward_pre_hooks]
    return hooks


class _CheckedPlan:
    """A plan, and the weights that it was made from.

    Parameters
    ----------
    network : PlannedUResNet
        The network.
    plan : Plan
        Its plan.
    """

    def __init__(self, network: PlannedUResNet, plan: Plan | LaunchPlans) -> None:
        self.plan = plan
        self._owners = [
            owner
            for module in network.modules()
            for owner in (module._parameters, module._buffers)
            if owner
        ]
        self._identities = _identities(self._owners)
        self._weights = [
            each for owner in self._owners for each in owner.values() if each is not None
        ]
        self._places = self._place()
        scales = {
            id(module._folded.norm.scale): module
            for module in network.modules()
            if isinstance(module, Norm) and module._folded is not None
        }
        self._norms = [(scales[id(scale)], scale) for scale, _ in plan.norms]
        self._versions = self._version()

    def update(self) -> bool:
        """Fold norms again whose values have changed; return whether the plan is still valid."""
        if not self.plan.is_current():
            return False
        if _identities(self._owners) != self._identities or self._place() != self._places:
            return False
        versions = self._version()
        if versions == self._versions:
            return True
        self._versions = versions
        self.plan.convert()
        for number, (norm, scale) in enumerate(self._norms):
            now = norm.from_running()
            if now.scale is not scale:
                self.plan.set_norm(number, now.scale, now.shift)
                self._norms[number] = norm, now.scale
        return True

    def _place(self) -> tuple[list[int], list[bool]]:
        """Return the addresses of the weights, and whether each has a gradient."""
        weights = self._weights
        return list(map(Tensor.data_ptr, weights)), list(map(_REQUIRES_GRAD, weights))

    def _version(self) -> int:
        """Return a number that grows whenever a weight or statistic changes in place."""
        return sum(map(_VERSION, self._weights)) if self.plan.norms else 0

    def refuse(self, x: SiteTensor) -> str:
        """Return why features cannot be planned, empty if they can."""
        features = computed(x.rows[0].features)
        if features.shape[1] != self.plan.channels:
            return "the features have another shape"
        return self.plan.refuse(x)


def _refuse(x: SiteTensor) -> str:
    """Return why an input cannot be planned, empty if it can."""
    features = x.rows[0].features if len(x.rows) == 1 else None
    if x.level or x.norm is not None or features is None or x.coordinates.order is None:
        return "the input is no tensor of sites and features"
    if not features.is_contiguous():
        return "the features are not contiguous"
    if features.requires_grad:
        return "the features have gradients"
    return "" if len(features) else "there are no sites"
