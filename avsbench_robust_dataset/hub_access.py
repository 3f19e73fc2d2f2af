"""Checks whether a token may write to the Hub, and explains the Hub's errors in sentences.

`avs-data export` and both scripts publish through it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

NO_TOKEN = (
    "Make one with write permission at https://huggingface.co/settings/tokens, then run `hf auth login`, set HF_TOKEN "
    "or give it as the token."
)


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns what the Hub's client raises into a sentence: PermissionError, ConnectionError or ValueError."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"Expected the name of a Hub repository, as `user/name`, got {repo_id!r}: {error}") from error
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"Expected a token to publish {repo_id}, but there is none. {NO_TOKEN}") from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"{repo_id} was not published: HF_HUB_OFFLINE is set. Unset it and repeat.") from error
    except (HTTPError, RuntimeError) as error:
        # The client wraps what goes wrong with a large file in a RuntimeError.
        cause = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(cause, HTTPError):
            raise
        raise _explanation(cause, repo_id) from error
    except (ConnectionError, TimeoutError) as error:  # hf_xet's, which carries large files
        raise _not_published(repo_id, f"could not be reached ({error})") from error


def _explanation(error: HTTPError, repo_id: str) -> OSError | ValueError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return PermissionError(f"The Hub refused the token for {repo_id} (401): it is none or not valid. {NO_TOKEN}")
    if status == 403:
        return PermissionError(
            f"The token may not write to {repo_id} (403). Name a repository of your own or of an organisation in "
            "which you may write, and see that the token has write permission."
        )
    if status is not None and status < 500 and status not in (408, 429):
        return ValueError(f"The Hub refused {repo_id} ({status}): {error}")
    what = f"answered with {status}" if status else f"could not be reached ({type(error).__name__})"
    return _not_published(repo_id, what)


def _not_published(repo_id: str, what: str) -> ConnectionError:
    return ConnectionError(
        f"{repo_id} was not published: the Hub {what}. A commit appears whole or not at all, so nothing is half "
        "there. Repeat the same call: large files that have arrived are not sent again."
    )


def check_hub_access(repo_id: str, token: str | None = None) -> str:
    """The whole name of the repository, "me/name" for "name"; changes nothing on the Hub.

    Raises:
        PermissionError: no token, an invalid one, or one that may only read.
        ConnectionError: the Hub cannot be reached.
        ValueError: a name that no repository can have.
    """
    with explained(repo_id):
        user = HfApi(token=token).whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(f"Expected a token that may write to {repo_id}, got one that may only read. {NO_TOKEN}")
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
