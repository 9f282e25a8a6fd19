"""What the models of a scenario share: `Model`, and tables whose keys hang on a word in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, WrapValidator
from pydantic_core import PydanticCustomError

from simvm.scenario.fields import mistake, one_of


class Model(BaseModel):
    """What all parts of a scenario share: immutable, no unknown keys, described by docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True,
        validate_by_alias=True,
    )  # fmt: skip


def words_of(model: type[BaseModel]) -> dict[str, str]:
    """The words that choose `model` from a union: its keys that take one word alone."""
    fields = {key: get_args(field.annotation) for key, field in model.model_fields.items()}
    return {key: words[0] for key, words in fields.items() if len(words) == 1}


def chosen_by(table: Mapping[str, Any], model: type[BaseModel]) -> bool:
    """Whether the words in a table are those that choose `model`."""
    return all(table.get(key) == word for key, word in words_of(model).items())


def choice(
    key: str, *models: type[BaseModel], default: str | None = None, later: Sequence[str] = ()
) -> WrapValidator:
    """A table that is one of `models`, by the word that stands at `key`.

    Stands beside ``Field(discriminator=key)`` in the annotation of the union.
    """
    return choice_from(key, {words_of(model)[key]: model for model in models}, default, later)


def choice_from(
    key: str, chosen: Mapping[str, type[BaseModel]], default: str | None, later: Sequence[str]
) -> WrapValidator:
    """A table that is of the model in `chosen`, which may grow, that the word at `key` names.

    Without the word it is `default`, or a mistake; a word of `later` is "not modelled yet".
    Mistakes inside the table are placed by its keys, without the word.
    """

    def pick(value: Any, validate: Callable[[Any], Any], info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return validate(value)
        word = value.get(key, default)
        try:
            if word is None:
                fix = f'add {key} = "{next(iter(chosen))}", or one of {", ".join(chosen)}'
                raise mistake("is required", fix)
            check: Any = one_of(*chosen, later=later).func
            check(word, info)
        except PydanticCustomError as error:
            place: Any = {"type": error, "loc": (key,), "input": word}
            raise ValidationError.from_exception_data(key, [place]) from None
        return chosen[word].model_validate({**value, key: word}, context=info.context)

    return WrapValidator(pick)
