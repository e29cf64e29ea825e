"""A commented configuration to start from."""

from __future__ import annotations

import jinja2

from ..evaluators.models import check_name
from .config import Config, make_config, parse_yaml


def starter(network: str, data: str) -> str:
    """YAML text for a network and a data set; it loads as it is.

    Raises
    ------
    ConfigError
        Where network or data are not of a form that a configuration takes.
    ModelError
        Where timm or torchvision have no network of this name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("paretopress.search", "."),
        keep_trailing_newline=True,
        autoescape=False,
        trim_blocks=True,
    )
    small = network.startswith("family:") or data == "digits"
    text = environment.get_template("starter.yaml.jinja").render(network=network, data=data, small=small)
    loaded: Config = make_config(parse_yaml(text), source="the starter configuration")
    assert loaded.model.name == network
    check_name(network)
    return text
