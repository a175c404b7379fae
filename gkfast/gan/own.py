"""Functions of the user's that the command line names as module:function: encoders, losses, features."""

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from torch import nn

from gkfast.gan import checks

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def named(option: str, text: str) -> Any:
    """What module:function names; modules are looked for in the current folder as well.

    Raises
    ------
    ValueError
        If there is no such module, it cannot be imported, or it has no such name.
    """
    module, _, name = text.partition(":")
    try:
        if not is_name(text):
            raise ImportError("it is not module:function")
        here = os.getcwd()
        # where a script is run from, but not the command gkfast
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)
        return getattr(import_module(module), name)
    # a module of the user's may raise anything
    except Exception as error:
        raise ValueError(
            f"{option} must be module:function, a function that Python can import, got {text!r} ({reason(error)}); "
            "check the names, and the folder or PYTHONPATH"
        ) from error


def made(option: str, text: str, function: Any) -> Any:
    """What a function of the user's returns without arguments."""
    try:
        return function()
    # it may raise anything
    except Exception as error:
        raise ValueError(
            f"{option} must be a function that can be called without arguments, got {text!r} ({reason(error)}); "
            "mend it"
        ) from error


class Called(nn.Module):
    """A function of a batch as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Any) -> Any:
        return self.function(batch)


def network(option: str, text: str) -> nn.Module:
    """What module:function makes of samples: a module or a function of a batch, or one that returns it."""
    found = named(option, text)
    if callable(found) and not takes_arguments(found):
        found = made(option, text, found)
    if not callable(found):
        raise ValueError(
            f"{option} must be a function of a batch, or return a torch.nn.Module, got {text!r}, "
            f"{checks.shown(found)}; change it"
        )
    return found if isinstance(found, nn.Module) else Called(found)


def takes_arguments(function: Any) -> bool:
    """Whether a call of it needs arguments."""
    if isinstance(function, nn.Module):
        return True
    try:
        parameters = signature(function).parameters.values()
    # some built-in functions have none
    except ValueError:
        return True
    plain = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.default is Parameter.empty and p.kind in plain for p in parameters)


def reason(error: Exception) -> str:
    """An error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
