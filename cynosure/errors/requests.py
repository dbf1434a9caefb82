"""Errors of requests: of what they ask for, of their form, and of who sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cynosure.errors.base import CynosureError
from cynosure.hints import nearest, sampler_hint, sentence, shown, unknown_fields, unknown_label


class InvalidRequest(CynosureError):
    """The request can't be served as it stands; `field` names what to change."""

    code, status, title = "invalid_request", 422, "Invalid request"


class UnknownModel(InvalidRequest):
    """The request names a model that no live worker holds."""

    code, title = "unknown_model", "Unknown model"

    def __init__(self, name: str, known: Sequence[str], *, alias_of: str | None = None, field: str = "model") -> None:
        if alias_of is None:
            said = f"No model '{shown(name)}' here. {sentence(nearest(name, known))}"
        else:
            said = f"No model '{alias_of}' here, of which '{shown(name)}' is an alias. "
        super().__init__(f"{said}Known: {', '.join(known)}.", field=field)


class UnknownLabel(InvalidRequest):
    """No model has such a class: `labels` of those that were looked in, by name. `instead` says what else would do."""

    code, title = "unknown_label", "Unknown class label"

    def __init__(self, label: int | str, labels: Mapping[str, Sequence[str]], *, instead: str = "") -> None:
        said = unknown_label(label, labels, names_models=len(labels) > 1 or bool(instead))
        super().__init__(f"{said} {instead}".strip(), field="class_label")


class UnknownSampler(InvalidRequest):
    """The model has no such sampler."""

    code, title = "unknown_sampler", "Unknown sampler"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"No sampler '{shown(name)}'. {sentence(sampler_hint(name, known))}Known: {', '.join(known)}.",
            field="sampler",
        )


class UnknownField(InvalidRequest):
    """The request has none of these fields.

    A nested one is `outer.inner`; `known` lists the fields allowed there, and `hints` says of some what was meant.
    """

    code, title = "unknown_field", "Unknown field"

    def __init__(self, fields: Sequence[str], known: Sequence[str], hints: Mapping[str, str] | None = None) -> None:
        super().__init__(unknown_fields(fields, known, hints or {}), field=shown(fields[0]))


class UnsupportedField(InvalidRequest):
    """The field has no meaning for this model, mode or deployment."""

    code, title = "unsupported_field", "Unsupported field"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail, field=field)


class MalformedBody(CynosureError):
    """The body is not a JSON object."""

    code, status, title = "malformed_body", 400, "Malformed body"


class BodyTooLarge(CynosureError):
    """The body is over the limit."""

    code, status, title = "body_too_large", 413, "Body too large"


ENCODINGS = ("gzip", "deflate")
"""Values of Content-Encoding that bodies may have."""


class UnsupportedEncoding(CynosureError):
    """The body's Content-Encoding is not taken."""

    code, status, title = "unsupported_encoding", 415, "Unsupported encoding"

    def __init__(self, name: str) -> None:
        ours = ", ".join(ENCODINGS)
        super().__init__(f"Content-Encoding '{shown(name)}' is not taken; these are: {ours}.", field="Content-Encoding")


class NotAcceptable(CynosureError):
    """The Accept header takes no media type that exists."""

    code, status, title = "not_acceptable", 406, "Not acceptable"

    def __init__(self, offers: Sequence[str]) -> None:
        super().__init__(f"Accept takes none of what there is here: {', '.join(offers)}.", field="Accept")


class Unauthenticated(CynosureError):
    """The request carries no API key, or an invalid one."""

    code, status, title = "unauthenticated", 401, "Not authenticated"


class Forbidden(CynosureError):
    """The API key is valid but lacks the scope; or there is no key, and the request comes from another site."""

    code, status, title = "forbidden", 403, "Forbidden"


class InvalidLink(Forbidden):
    """The link's signature is not that of its picture, or no longer counts."""

    code, title = "invalid_link", "Invalid link"


class LinkExpired(Forbidden):
    """The link was signed for a time that is over."""

    code, title = "link_expired", "Link expired"
