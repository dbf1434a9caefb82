"""Fields that are read by several names."""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, BaseModel, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue


def spellings(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Every name that a field is read by, the one to write first."""
    choices = field.validation_alias
    if isinstance(choices, AliasChoices):
        return tuple(choice for choice in choices.choices if isinstance(choice, str))
    return (choices if isinstance(choices, str) else name,)


class Spelled(BaseModel):
    """A model whose schema has all names of its fields, so that generated clients take them too."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if handler.mode == "validation":
            properties: dict[str, Any] = handler.resolve_ref_schema(schema)["properties"]
            for field_name, field in cls.model_fields.items():
                first, *others = spellings(field_name, field)
                for other in others:
                    properties[other] = {
                        **{part: value for part, value in properties[first].items() if part != "default"},
                        "title": other.replace("_", " ").title(),
                        "description": f"Another name of {first}; give one of them.",
                    }
        return schema
