"""The Hugging Face hub: models fetched from it, and the repository that one is put into (private unless asked otherwise)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..settings import UserError

FLAG = "--push-to-hub"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Repo:
    """Where a model goes, as owner/name. The token is the one that huggingface_hub finds: HF_TOKEN, or that of the login."""

    name: str
    public: bool = False

    @cached_property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()

    def check(self) -> None:
        """Whether the repository can be written to, before anything expensive; nothing is made there.

        Raises:
            UserError: no such name, no network, no token or one that may not write, somebody else's, or another visibility.
        """
        check_name(self.name)
        self._check_user()
        self._check_visibility()

    def upload(self, files: Mapping[str, Path | bytes], message: str) -> str:
        """Make the repository if it is not there, and put files into it in one commit; others there stay.

        Args:
            files: by their names in the repository.

        Returns:
            The repository's address.

        Raises:
            UserError: the first thing that went wrong, in one line.
        """
        from huggingface_hub import CommitOperationAdd

        try:
            made = self._api.create_repo(self.name, private=not self.public, exist_ok=True)
            self._check_visibility()
            added = [CommitOperationAdd(name, content) for name, content in files.items()]
            self._api.create_commit(self.name, added, commit_message=message)
        except UserError:
            raise
        except Exception as error:  # huggingface_hub raises a dozen kinds; the first line says which
            raise UserError(first_line(error)) from None
        return str(made)

    def _check_user(self) -> None:
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

        try:
            told = self._api.whoami()
        except LocalTokenNotFoundError:
            raise UserError(f"{FLAG} {self.name} needs a token, and there is none: {LOG_IN}") from None
        except HfHubHTTPError as error:
            if error.response.status_code != 401:
                raise UserError(self._unreachable(error)) from None
            raise UserError(f"{FLAG} {self.name}: the hub does not take the token: {LOG_IN}") from None
        except Exception as error:  # of the network, a dozen kinds
            raise UserError(self._unreachable(error)) from None
        if told.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"{FLAG} {self.name}: the token may only read: {LOG_IN}, with one that may write")
        own = [told.get("name"), *(one.get("name") for one in told.get("orgs") or ())]
        if self.name.split("/")[0] not in own:
            raise UserError(f"{FLAG} {self.name} belongs to none of {', '.join(map(str, own))}: name one of yours")

    def _check_visibility(self) -> None:
        """A private model is not put where everybody reads it, nor the other way round."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            private = bool(self._api.model_info(self.name).private)
        except RepositoryNotFoundError:
            return
        except Exception as error:
            raise UserError(self._unreachable(error)) from None
        if private == self.public:
            remedy = "leave out --public" if private else "add --public"
            raise UserError(
                f"{FLAG} {self.name} is {'private' if private else 'public'} on the hub: {remedy}, or choose another"
            )

    def _unreachable(self, error: Exception) -> str:
        return f"{FLAG} {self.name}: the hub does not answer as it should ({first_line(error)}): check the network, repeat later"


def check_name(name: str) -> None:
    """Whether a repository can be so called, and the hub may be asked at all.

    Raises:
        UserError: it cannot, or may not.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        sound = name.count("/") == 1
    except HFValidationError:
        sound = False
    if not sound:
        raise UserError(f"{FLAG} {name} is no repository's name: say owner/name")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{FLAG} {name} needs the network, and HF_HUB_OFFLINE is set: unset it")


def first_line(error: Exception) -> str:
    """What an error says, without the request's number and address."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r" ?\(Request ID: [^)]*\)| for url '?\S+", "", said).strip().rstrip(".:")


# ---------------------------------------------------------------- fetched


def fetch(model: str, revision: str | None, wanted: list[str]) -> Path:
    """The directory of a hub model, fetched into the hub's cache: the files that match `wanted`.

    Raises:
        UserError: no such model, no network.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:  # huggingface_hub raises a dozen kinds; the first line says which
        named = f"{model}@{revision}" if revision else model
        if is_offline():
            raise UserError(f"--model {named} cannot be had from the hub: {offline(model)}") from None
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--model {named} cannot be had from the hub ({reason}): check the id and the network, or name a local directory"
        ) from None


def is_offline() -> bool:
    """Whether the hub may not be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def offline(model: str) -> str:
    """Why a hub model is not here while the hub may not be asked, and what helps."""
    from huggingface_hub import constants

    return (
        f"HF_HUB_OFFLINE is set and it is not whole in the cache ({constants.HF_HUB_CACHE}): "
        f"unset it, fetch the model where there is a network (hf download {model}), or name a local directory"
    )
