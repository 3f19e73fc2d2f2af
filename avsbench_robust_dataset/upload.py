"""Uploads an exported folder to a dataset repository on the Hub, as one commit."""

import os
from collections.abc import Iterable
from pathlib import Path

from datasets.info import DatasetInfosDict
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from .conditions import CONDITIONS
from .data_card import FORBIDDEN, is_free, parse_card, read_card
from .hub_access import check_hub_access, explained


def check_repository(
    repo_id: str, subsets: Iterable[str], public: bool = False, token: str | None = None
) -> tuple[str, set[str] | None]:
    """The repository's whole name and its files, None if there is none yet; raises as `push` of the subsets would."""
    repo_id = check_hub_access(repo_id, token)
    api = HfApi(token=token)
    with explained(repo_id):
        if not api.repo_exists(repo_id, repo_type="dataset"):
            return repo_id, None
        about = api.dataset_info(repo_id)
        if not (public or about.private or is_free(subsets)):
            raise ValueError(
                f"Expected a private repository, but {repo_id} exists and is public. {FORBIDDEN} Make it private in "
                "its settings, name another, or pass --public if you have the permission. Nothing was uploaded."
            )
        there = {file.rfilename for file in about.siblings or []}
        if there - {".gitattributes", "README.md"}:
            readme = "README.md" in there and api.hf_hub_download(repo_id, "README.md", repo_type="dataset")
            if not readme or parse_card(Path(readme).read_text(encoding="utf-8"), repo_id) is None:
                raise ValueError(
                    f"Expected an empty repository or an earlier export in {repo_id}, got other files. Name another "
                    "one. Nothing was uploaded."
                )
        return repo_id, there


def push(folder: str | os.PathLike, repo_id: str, public: bool = False, token: str | None = None) -> CommitInfo:
    """Uploads what `export` wrote to a dataset repository on the Hub, as one commit; then it holds just that.

    Args:
        repo_id: as user/name; made if it is not there.
        public: allows a public repository, and makes a new one public; AVSBench's media must not be published without
            permission.

    Raises:
        FileExistsError: `folder` is not of `export`, or incomplete.
        PermissionError, ConnectionError, ValueError: the Hub refuses or cannot be reached; the repository holds other
            data, or is public. It is then as it was before.
    """
    folder = Path(folder).expanduser().resolve()
    infos = DatasetInfosDict.from_dataset_card_data(read_card(folder).data)
    repo_id, there = check_repository(repo_id, infos, public, token)
    api = HfApi(token=token)
    with explained(repo_id):
        if there is None:
            api.create_repo(repo_id, repo_type="dataset", private=not public)
        files = {f"{name}/{path.name}": path for name in infos for path in sorted((folder / name).glob("*.parquet"))}
        additions = {name: CommitOperationAdd(name, path) for name, path in files.items()}
        # One condition after the other: Xet finds images that have arrived, not those on their way in the same batch.
        for condition in CONDITIONS:
            batch = [addition for name, addition in additions.items() if f"_{condition}-" in name]
            if batch:
                api.preupload_lfs_files(repo_id, batch, repo_type="dataset")
        outdated = sorted(name for name in (there or set()) - set(files) if name.endswith(".parquet"))
        return api.create_commit(
            repo_id,
            [
                *additions.values(),
                CommitOperationAdd("README.md", folder / "README.md"),
                *(CommitOperationDelete(name) for name in outdated),
            ],
            repo_type="dataset",
            commit_message=f"Upload AVSBench-Robust: {', '.join(infos)}",
        )
