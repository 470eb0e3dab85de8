"""Networks by name, by settings and from SPINE's configuration files."""

import dataclasses
import sys
from pathlib import Path

import pytest

from backends.capabilities import Unsupported
from backends.network_spec import parse_network
from backends.uresnet import UResNetConfig

ROOT = Path(__file__).resolve().parents[2]

CONFIGURATION = """
base: {iterations: 10}
model:
  name: uresnet
  weight_path: null
  modules:
    uresnet:
      num_input: 2
      num_classes: 2
      filters: 32
      depth: 5
      reps: 2
      spatial_size: 768
      allow_bias: false
      activation: {name: lrelu, negative_slope: 0.33}
      norm_layer: {name: batch_norm, eps: 1e-4, momentum: 0.01}
    uresnet_loss: {balance_loss: false}
"""


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("study", UResNetConfig()),
        ("spine", UResNetConfig(filters=32, slope=0.33)),
        ("filters=32,depth=6", UResNetConfig(filters=32, depth=6)),
        (
            "filters=8,depth=3,reps=1,activation=leaky_relu:0.33,inputs=2,classes=2",
            UResNetConfig(8, 3, 1, 2, 2, 0.33),
        ),
        ("activation=relu,eps=1e-3,momentum=0.1", UResNetConfig(eps=1e-3, momentum=0.1)),
        ("spine,inputs=2,classes=2", UResNetConfig(32, 5, 2, 2, 2, 0.33)),
    ],
)
def test_texts(text, network):
    assert parse_network(text) == network


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("uresnet", "names no network; choose study, spine"),
        ("", "names no network"),
        ("filters", "names no network"),
        ("filters=0", "filters must be a whole number of at least 1, not '0'"),
        ("depth=2.5", "depth must be a whole number"),
        ("width=3", "no setting 'width'; choose from filters, depth"),
        ("activation=gelu", "activation must be relu or leaky_relu:SLOPE, not 'gelu'"),
        ("activation=leaky_relu", "leaky_relu:SLOPE"),
        ("activation=leaky_relu:2", "the slope of leaky_relu must be a number from 0 to 1"),
        ("eps=0", "eps must be a number above 0"),
        ("momentum=nan", "momentum must be a number above 0"),
        ("nowhere.yaml", "there is no file nowhere.yaml"),
    ],
)
def test_other_texts_are_refused_in_one_sentence(text, words):
    with pytest.raises(Unsupported) as refusal:
        parse_network(text)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def written(tmp_path, text):
    path = tmp_path / "uresnet.yaml"
    path.write_text(text)
    return str(path)


def test_a_spine_configuration_gives_its_uresnet_section(tmp_path):
    expected = UResNetConfig(32, 5, 2, 2, 2, 0.33, 1e-4, 0.01)
    assert parse_network(written(tmp_path, CONFIGURATION)) == expected


def test_the_configuration_of_the_page_about_spine_is_the_network_called_spine(tmp_path):
    page = (ROOT / "docs" / "spine.md").read_text()
    configuration = page.split("```yaml\n")[1].split("```")[0]
    assert parse_network(written(tmp_path, configuration)) == parse_network("spine")


def test_settings_that_a_configuration_leaves_out_are_spines(tmp_path):
    text = "uresnet: {num_classes: 5, filters: 16, depth: 5, reps: 2}"
    expected = UResNetConfig(slope=0.01, eps=1e-5, momentum=0.1)
    assert parse_network(written(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("allow_bias: false", "allow_bias: true", "allow_bias: True is not supported"),
        ("spatial_size: 768", "ghost: true", "ghost: True is not supported"),
        ("spatial_size: 768", "input_kernel: 7", "the networks here have input_kernel: 3"),
        ("spatial_size: 768", "lattice: {period: 2}", "lattice"),
        ("spatial_size: 768", "block: resnext", "block is not a setting of the networks here"),
        ("name: lrelu, negative_slope: 0.33", "name: mish", "activation mish is not supported"),
        ("name: lrelu", "name: elu", "the activation elu with negative_slope"),
        ("negative_slope: 0.33", "negative_slope: steep", "must be a number from 0 to 1"),
        ("name: batch_norm, eps: 1e-4, momentum: 0.01", "name: instance_norm", "instance_norm"),
        ("{name: batch_norm, eps: 1e-4, momentum: 0.01}", "[1]", "norm_layer must be a name"),
        ("filters: 32", "filters: many", "filters must be a whole number"),
        ("      filters: 32\n", "", "the section uresnet has no filters"),
        ("    uresnet:", "    uresnext:", "has no section uresnet"),
        ("base: {iterations: 10}", "uresnet: {num_classes: 5, filters: 8, depth: 2, reps: 1}",
         "sections uresnet of 2 networks"),
        ("base: {iterations: 10}", "base: {", "cannot be read as YAML"),
    ],
)  # fmt: skip
def test_a_configuration_beyond_the_family_is_refused_by_name(tmp_path, old, new, words):
    assert old in CONFIGURATION
    path = written(tmp_path, CONFIGURATION.replace(old, new))
    with pytest.raises(Unsupported) as refusal:
        parse_network(path)
    assert words in str(refusal.value)
    assert path in str(refusal.value)
    assert "\n" not in str(refusal.value)


INCLUDING = """
include: network.yaml
base: !include base.yaml
override: {model.modules.uresnet.filters: 8}
"""


@pytest.mark.spine
def test_spine_reads_a_configuration_of_several_files(tmp_path):
    pytest.importorskip("spine")
    (tmp_path / "network.yaml").write_text(CONFIGURATION.replace("base: {iterations: 10}\n", ""))
    (tmp_path / "base.yaml").write_text("iterations: 10\n")
    path = tmp_path / "whole.yaml"
    path.write_text(INCLUDING)
    alone = parse_network(written(tmp_path, CONFIGURATION))
    assert parse_network(str(path)) == dataclasses.replace(alone, filters=8)
    (tmp_path / "network.yaml").unlink()
    with pytest.raises(
        Unsupported, match=r"SPINE cannot read .*whole\.yaml: .*network\.yaml"
    ) as no:
        parse_network(str(path))
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("text", ["include: network.yaml", "base: !include base.yaml"])
def test_without_spine_a_configuration_of_several_files_is_refused(tmp_path, monkeypatch, text):
    for name in ("spine", "spine.config"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unsupported, match="install the extra spine"):
        parse_network(written(tmp_path, text))
