"""Reading and validating the environment: only here, once, before anything listens (contract section 2).

pydantic is needed for this alone, so a process that imports this module ends soon, or can afford 20 MB:
`python -m relay` does it in a short-lived child, and hands the result to the workers.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import psycopg2.extensions
from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from config.settings import Settings, Source

#: What the names of the relay's own settings begin with.
_PREFIX: Final = "SMTP_RELAY_"


class Wrong(ValueError):
    """What is wrong with a value, in words that hold nothing secret of it."""


class WrongSettings(Exception):
    """What the environment says can't work. The text, fit for stderr, is a line for each wrong variable; no secrets."""


def load() -> Settings:
    """The settings of this process's environment, each valid by itself. Raises WrongSettings."""
    try:
        values = _Environment().model_dump(exclude_unset=True)
    except ValidationError as error:
        raise WrongSettings("\n".join(sorted(set(_lines(error))))) from None
    return Settings(**values)


def unknown() -> list[str]:
    """A line for each variable of this process's environment that looks like a setting and is none."""
    known = {name for setting in dataclasses.fields(Settings) for name in setting.metadata["source"].variables}
    lines = []
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            lines.append(f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return lines


# The model, made of what config.settings declares.


class _Base(BaseSettings):
    model_config = SettingsConfigDict(
        case_sensitive=True,
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        validate_default=False,  # see _definition
    )

    @model_validator(mode="before")
    @classmethod
    def _trim(cls, values: dict[str, object]) -> dict[str, object]:
        """White space around a value is removed; a value of white space alone counts as not set."""
        trimmed = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in trimmed.items() if value != ""}


def _switch(value: object) -> object:
    """OpenSend's own programs know `true` and `false`; 1 and 0 are what people write besides."""
    if not isinstance(value, str):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}
    if value.lower() not in known:
        raise ValueError
    return known[value.lower()]


#: A name, an address, or an address with a zone (RFC 6874).
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]*")
_UNENCODED: Final = "its host name is not valid; characters of a password such as @ : / # have to be percent-encoded"


def _scheme(value: str) -> str:
    """What stands before `://`. Raises Wrong: a value without it may be nothing but a password."""
    scheme, found, _ = value.partition("://")
    if not found or not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]{0,30}", scheme):
        raise Wrong("it has no scheme such as postgres:// or redis://")
    return scheme.lower()


def _port(text: str) -> None:
    if not (text.isdecimal() and len(text) < 10):
        raise Wrong("its port is not a number; characters of a password such as @ : / # have to be percent-encoded")
    if not 0 < int(text) < 65536:
        raise Wrong(f"port {int(text)} is out of range")


def _postgres_url(value: str) -> str:
    scheme = _scheme(value)
    if scheme not in ("postgres", "postgresql"):
        raise Wrong(f"scheme {scheme!r} is not supported")
    try:
        parameters = psycopg2.extensions.parse_dsn(value)
    except psycopg2.ProgrammingError as error:
        raise Wrong("libpq can't read it (% is written as %25), or does not know one of its parameters") from error
    # The first `@` ends the password, and the first `/` the hosts: with a second `@` behind either, one of the two was
    # the password's. A `?` begins the parameters, but before an `@` it is the password's.
    authority, _, path = value.partition("://")[2].partition("/")
    _, found, hosts = authority.partition("@")
    if "@" in hosts.partition("?")[0] or ((found or "?" not in authority) and "@" in path.partition("?")[0]):
        raise Wrong(_UNENCODED)
    # An `@` or a blank that should have been percent-encoded ends up here, with the password's end before it.
    for host in parameters.get("host", "").split(","):
        if not host.startswith(("/", "@")) and not _HOST.fullmatch(host):
            raise Wrong(_UNENCODED)
    # Several hosts have several ports; libpq itself looks at them only when it connects.
    for port in parameters.get("port", "5432").split(","):
        if port:
            _port(port)
    return value


def _redis_url(value: str) -> str:
    scheme = _scheme(value)
    if scheme not in ("redis", "rediss"):
        raise Wrong(f"scheme {scheme!r} is not supported")
    parts = urlsplit(value)
    if not parts.hostname:
        raise Wrong("it names no host")
    _, _, host = parts.netloc.rpartition("@")
    _, colon, port = host.rpartition("]")[2].partition(":")
    if colon and port:
        _port(port)
    # A `/`, `?` or `#` that should have been percent-encoded: what follows was meant for the password and the host.
    if not _HOST.fullmatch(parts.hostname) or "@" in parts.path + parts.query or parts.fragment:
        raise Wrong(_UNENCODED)
    database = parts.path.removeprefix("/")
    if database and not (database.isascii() and database.isdigit()):
        raise Wrong("what follows its / should be the number of a database")
    return value


def _pattern(form: str) -> Callable[[str], str]:
    pattern = re.compile(form)

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError
        return value

    return check


def _networks(value: str) -> str:
    for network in map(str.strip, value.split(",")):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            try:
                meant = ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise error from None
            raise Wrong(f"host bits are set; did you mean {meant}?") from error
    return value


_FORMS: Final = {"postgres-url": _postgres_url, "redis-url": _redis_url, "networks": _networks}


def _checked(form: str) -> AfterValidator:
    form_check = _FORMS.get(form) or _pattern(form)

    def check(value: str | None) -> str | None:
        try:
            return value if value is None else form_check(value)
        except Wrong:
            raise
        except ValueError:
            # A library's text may hold any part of the value.
            raise Wrong from None

    return AfterValidator(check)


def _in_small_letters(choices: Sequence[object]) -> BeforeValidator:
    """One of several words may be written in any case."""

    def lower(value: object) -> object:
        return value.lower() if isinstance(value, str) and value.lower() in choices else value

    return BeforeValidator(lower)


def _definition(setting: dataclasses.Field[object], kind: object) -> tuple[object, object]:
    source: Source = setting.metadata["source"]
    validators: list[object] = [BeforeValidator(_switch)] if kind is bool else []
    if get_origin(kind) is Literal:
        validators.append(_in_small_letters(get_args(kind)))
    elif isinstance(kind, type) and issubclass(kind, StrEnum):
        validators.append(_in_small_letters([choice.value for choice in kind]))
    if source.form is not None:
        validators.append(_checked(source.form))
    required = setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING
    options = Field(
        # Of those that are not set only `Settings` has the default.
        default=... if required else None,
        validation_alias=AliasChoices(*source.variables),
        ge=source.minimum,
        le=source.maximum,
    )
    return (Annotated[(kind, *validators)] if validators else kind), options


def _definitions() -> dict[str, Any]:
    kinds = get_type_hints(Settings)
    return {setting.name: _definition(setting, kinds[setting.name]) for setting in dataclasses.fields(Settings)}


_Environment: Final = create_model("_Environment", __base__=_Base, **_definitions())


# What is said of wrong ones.


def _lines(error: ValidationError) -> Iterator[str]:
    sources: dict[str, Source] = {}
    for setting in dataclasses.fields(Settings):
        source: Source = setting.metadata["source"]
        sources[source.variables[0]] = source
        sources[setting.name] = source
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        source = sources[str(problem["loc"][0])]
        # The first one that is set is the one that was read.
        variable = next((name for name in source.variables if os.environ.get(name)), source.variables[0])
        reason = problem["msg"].removeprefix("Value error, ") if problem["type"] == "value_error" else ""
        # A question proposes the value that was meant.
        said = reason if reason.endswith("?") else f"{f'{reason}; ' if reason else ''}should be {source.expected}"
        yield f"{variable} {_shown(variable, source)}: {said}"


def _shown(variable: str, source: Source) -> str:
    value = os.environ.get(variable, "")
    if not value.strip():
        return "is not set"
    # A URL with user information has no place in any other setting, but people put it there.
    if not source.secret and not ("://" in value and "@" in value):
        return f"is {value[:200]!r}"
    return "is set, but not shown"
