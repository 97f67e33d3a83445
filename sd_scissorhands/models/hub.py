"""The Hugging Face hub: fetching models, and uploading one to a repository (private unless asked otherwise)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import AbsentError, UserError, reason

FLAG = "--push-to-hub"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Repo:
    """A repository of the hub that a model is uploaded to. The token is huggingface_hub's: HF_TOKEN, or that of the login."""

    name: str  # owner/name
    public: bool = False

    @cached_property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()

    def check(self) -> None:
        """Check that the repository can be written to, before anything expensive; nothing is made there.

        Raises:
            UserError: no such name, no network, no token or one that may not write, somebody else's, or another visibility.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
            sound = self.name.count("/") == 1
        except HFValidationError:
            sound = False
        if not sound:
            raise UserError(f"{FLAG} {self.name} is no repository's name: say owner/name")
        if is_offline():
            raise UserError(f"{FLAG} {self.name} needs the network, and HF_HUB_OFFLINE is set: unset it")
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
        except Exception as error:  # huggingface_hub raises a dozen kinds; the first line names it
            raise UserError(first_line(error)) from None
        return str(made)

    def _check_user(self) -> None:
        from huggingface_hub.errors import LocalTokenNotFoundError

        try:
            user = self._api.whoami()
        except LocalTokenNotFoundError:
            raise UserError(f"{FLAG} {self.name} needs a token, and there is none: {LOG_IN}") from None
        except Exception as error:  # of the network, a dozen kinds
            if getattr(getattr(error, "response", None), "status_code", None) == 401:
                raise UserError(f"{FLAG} {self.name}: the hub does not take the token: {LOG_IN}") from None
            raise self._unreachable(error) from None
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"{FLAG} {self.name}: the token may only read: {LOG_IN}, with one that may write")
        own = [user.get("name"), *(one.get("name") for one in user.get("orgs") or ())]
        if self.name.split("/")[0] not in own:
            raise UserError(f"{FLAG} {self.name} belongs to none of {', '.join(map(str, own))}: name one of yours")

    def _check_visibility(self) -> None:
        """Refuse to put a private model into a public repository, or the other way round."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            private = bool(self._api.model_info(self.name).private)
        except RepositoryNotFoundError:
            return
        except Exception as error:
            raise self._unreachable(error) from None
        if private == self.public:
            remedy = "leave out --public" if private else "add --public"
            raise UserError(
                f"{FLAG} {self.name} is {'private' if private else 'public'} on the hub: {remedy}, or choose another"
            )

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(
            f"{FLAG} {self.name}: the hub does not answer as it should ({first_line(error)}): check the network, repeat later"
        )


def first_line(error: Exception) -> str:
    """An error's first line, without the request's number and address."""
    return re.sub(r" ?\(Request ID: [^)]*\)| for url '?\S+", "", reason(error)).strip().rstrip(".:")


# ---------------------------------------------------------------- fetched


def fetch(model: str, revision: str | None, patterns: list[str], *, flag: str = "--model") -> Path:
    """The directory of a hub model in the hub's cache, with the files that match the patterns fetched.

    Raises:
        AbsentError: no such model, no network.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # huggingface_hub raises a dozen kinds; the first line names it
        named = f"{model}@{revision}" if revision else model
        if is_offline():
            raise AbsentError(f"{flag} {named} cannot be had from the hub: {not_cached(model)}") from None
        raise AbsentError(
            f"{flag} {named} cannot be had from the hub ({first_line(error)}): check the id and the network, or name a local directory"
        ) from None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids network access."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def not_cached(model: str) -> str:
    """Why a hub model is not here while HF_HUB_OFFLINE is set, and what helps."""
    from huggingface_hub import constants

    return (
        f"HF_HUB_OFFLINE is set and it is not whole in the cache ({constants.HF_HUB_CACHE}): "
        f"unset it, fetch the model where there is a network (hf download {model}), or name a local directory"
    )
