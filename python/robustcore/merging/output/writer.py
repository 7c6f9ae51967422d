"""A safetensors output that is written in parts and appears only when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor

from .._atomic_file import atomic_file, sync_folder
from ..checkpoints._file import writable_bytes
from ..checkpoints.checkpoint import StoredTensor
from .journal import Journal, differences
from .partial_file import PartialFile
from .plan import PARTIAL, OutputPlan, plan_output

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes tensors part by part into one safetensors file, or into several with an index.

    Until :meth:`finish` the file is called ``<path>.partial``, and ``<path>.journal`` says what is
    in it: a job that was killed is taken up again by opening the same output with the same
    ``identity``. The order of the tensors in a file is that of the safetensors package.

    As a context manager it finishes at the end of the block, keeps everything for another run when
    it is interrupted (``KeyboardInterrupt``, ``SystemExit``), and deletes it after an error.

    Args:
        path: The file; with ``max_shard_size`` the folder, which is made if it is not there.
        tensors: What will be written. In a folder they are distributed in this order.
        metadata: Strings by name for the header.
        identity: Facts about the job, for JSON: a later run goes on only where they are equal.
        inputs: Files that the job reads: the output must be none of them.
        max_shard_size: Bytes of tensors in a file at the most, unless one tensor is larger. The
            files are called ``model-00001-of-0000N.safetensors``, and there is an index; where
            everything fits into one, it is ``model.safetensors`` without an index.
        overwrite: Replaces an output that is there, when the new one is complete.
        resume: Goes on with the job that a journal is about. With False a journal is an error.
        restart: Forgets what a journal is about and begins anew.
        sync_seconds: How often data are forced onto the disk, in the background; after the machine
            was restarted, only what was forced counts as done.

    Attributes:
        plan: The files, their sizes, the journal.
        journal: What is done, and results that later parts need.
        resumed: It goes on with an earlier run.

    Raises:
        BlockingIOError: Another merge is writing to this output.
        FileExistsError: The output exists, and ``overwrite`` is False.
        OSError: The folder is not there or not writable, or the disk is too full: nothing is left.
        ValueError: The output is an input; a journal is about another job (lists what differs);
            tensors that a safetensors file cannot hold.

    Example:
        >>> import os, tempfile, torch
        >>> from safetensors.torch import load_file
        >>> from robustcore.merging.checkpoints import StoredTensor
        >>> from robustcore.merging.output import CheckpointWriter
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "merged.safetensors")
        ...     tensors = [StoredTensor("weight", (2, 2), torch.float32)]
        ...     with CheckpointWriter(path, tensors, identity={"job": 1}) as writer:
        ...         for part in range(2):
        ...             if not writer.is_done(part):
        ...                 writer.write("weight", 2 * part, torch.full((2,), float(part)))
        ...                 writer.mark_done(part)
        ...     load_file(path)["weight"].tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Sequence[StoredTensor],
        metadata: Mapping[str, str] | None = None,
        *,
        identity: Mapping[str, Any],
        inputs: Iterable[str | os.PathLike[str]] = (),
        max_shard_size: int | None = None,
        overwrite: bool = False,
        resume: bool = True,
        restart: bool = False,
        sync_seconds: float = 30.0,
    ) -> None:
        self.plan: OutputPlan = plan_output(
            path, tensors, metadata, inputs=inputs, max_shard_size=max_shard_size, overwrite=True
        )
        self._overwrite = overwrite
        self._sync_seconds = sync_seconds
        self._files = [PartialFile(file) for file in self.plan.files]
        self._places: dict[str, tuple[PartialFile, StoredTensor]] = {
            tensor.key: (file, tensor) for file in self._files for tensor in file.plan.tensors
        }
        self._syncing: threading.Thread | None = None
        self._sync_error: OSError | None = None
        self._guard = threading.Lock()
        job = _as_json(
            {"output": [_described(file) for file in self._files], "job": dict(identity)}
        )
        made_folder = False
        if self.plan.makes_folder and not os.path.isdir(self.plan.folder):
            os.mkdir(self.plan.folder)
            made_folder = True
        self._finished = False
        self.journal = Journal(self.plan.journal)
        try:
            self.resumed = self._take_up(job, resume=resume, restart=restart)
        except BaseException:
            self._close()
            if made_folder:
                with contextlib.suppress(OSError):
                    os.rmdir(self.plan.folder)
            raise
        self._last_sync = time.monotonic()

    def _take_up(self, job: dict[str, Any], *, resume: bool, restart: bool) -> bool:
        """Goes on with an earlier run, or reserves the space; True where it goes on."""
        before = self.journal.identity
        if before is not None and not restart:
            if not resume:
                raise FileExistsError(
                    f"{self.journal.path}: a merge into this output was interrupted; resume=True "
                    "goes on with it, restart=True begins anew"
                )
            found = differences(before, job)
            if found:
                raise ValueError(
                    f"{self.journal.path}: an interrupted merge must have the same inputs and "
                    "options to go on (restart=True begins anew), got differences:\n"
                    + "\n".join(f"  {line}" for line in found)
                )
            if all(file.reopen() for file in self._files):
                placed = [file.plan.path for file in self._files if file.placed]
                if not placed or self.journal.finishing:
                    ours = placed
                    if self.journal.finishing and self.plan.index:
                        ours = [*placed, self.plan.index[0]]
                    self.plan.check_existing(overwrite=self._overwrite, ours=ours)
                    self.journal.resume()
                    return True
            for file in self._files:
                file.close()
                file.placed = False
        try:
            self.plan.check_existing(overwrite=self._overwrite)
        except FileExistsError:
            if before is None:
                self.journal.remove()
            raise
        for name in _partials_of(before):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.plan.folder, name))
        try:
            for file in self._files:
                file.create()
            self.journal.start(job)
        except BaseException:
            self.discard()
            raise
        return False

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the parts that are done: a copy."""
        return self.journal.done

    def is_done(self, part: int) -> bool:
        """Whether :meth:`mark_done` was told of a part, in this or an earlier run."""
        return self.journal.is_done(part)

    def remember(self, name: str, value: Any) -> None:
        """Keeps a result that later parts need, in JSON, for this and later runs."""
        self.journal.remember(name, value)

    def recall(self, name: str) -> Any:
        """What :meth:`remember` was given, as JSON keeps it, or None."""
        return self.journal.recall(name)

    def write(self, key: str, start: int, values: Tensor) -> None:
        """Writes elements ``[start, start + len(values))`` of a tensor; from any thread.

        Args:
            key: One of ``tensors``.
            start: Position in the row-major order of the tensor.
            values: A contiguous one-dimensional CPU tensor of the stored dtype.
        """
        file, tensor = self._places[key]
        if values.ndim != 1 or not values.is_contiguous() or values.device.type != "cpu":
            raise ValueError(
                f"{file.plan.path}: tensor {key!r}: values must be contiguous, with one dimension, "
                f"on the CPU, got shape {tuple(values.shape)} on {values.device}"
            )
        if values.dtype != tensor.dtype:
            raise ValueError(
                f"{file.plan.path}: tensor {key!r}: values must be {tensor.dtype}, got "
                f"{values.dtype}"
            )
        if not 0 <= start <= start + len(values) <= tensor.numel:
            raise ValueError(
                f"{file.plan.path}: tensor {key!r}: the range must lie in [0, {tensor.numel}), got "
                f"[{start}, {start + len(values)})"
            )
        offset = file.plan.starts[key] + start * tensor.dtype.itemsize
        file.write(offset, writable_bytes(values))

    def mark_done(self, part: int) -> None:
        """Everything of a part is written: a later run need not write it again."""
        self.journal.mark_done(part)
        with self._guard:
            self._raise_sync_error()
            idle = self._syncing is None or not self._syncing.is_alive()
            if idle and time.monotonic() - self._last_sync >= self._sync_seconds:
                self._last_sync = time.monotonic()
                self._syncing = threading.Thread(target=self._sync_in_background, daemon=True)
                self._syncing.start()

    def sync(self) -> None:
        """Forces what is written onto the disk: it counts even if the machine stops."""
        lines = self.journal.lines()
        for file in self._files:
            file.sync()
        self.journal.mark_synced(lines)

    def _sync_in_background(self) -> None:
        try:
            self.sync()
        except OSError as error:
            self._sync_error = error

    def _raise_sync_error(self) -> None:
        if self._sync_error is not None:
            raise self._sync_error

    def _wait_for_sync(self) -> None:
        with self._guard:
            thread = self._syncing
        if thread is not None:
            thread.join()

    def finish(self, parts: int | None = None) -> None:
        """Forces everything onto the disk and gives it the final name; the journal goes.

        Args:
            parts: How many parts there are: all of 0 ... parts - 1 must be done.

        Raises:
            ValueError: A part is not done.
            FileExistsError: Something else has come to the output's place.
            OSError: The disk failed.
        """
        if self._finished:
            return
        self._wait_for_sync()
        self._raise_sync_error()
        if parts is not None and (missing := set(range(parts)) - self.journal.done):
            raise ValueError(
                f"{self.plan.files[0].path}: all {parts} parts must be done, got {len(missing)} "
                f"that are not: {sorted(missing)[:10]}"
            )
        for file in self._files:
            file.sync()
        if not self.journal.finishing:
            self.plan.check_existing(overwrite=self._overwrite)
        self.journal.mark_finishing()
        index = self.plan.index
        # Last of what is old goes its index, which says what else is old; and it goes before the
        # first new file comes, since it must not lead to that.
        for name in self.plan.stale:
            _delete(name)
        if index is not None:
            _delete(index[0])
        for file in self._files:
            file.place()
        if index is not None:
            with atomic_file(index[0]) as target:
                target.write(index[1].encode())
        sync_folder(self.plan.folder)
        self._finished = True
        self.journal.remove()
        self._close()

    def abort(self, error: BaseException | None = None) -> None:
        """Ends without an output.

        After an error nothing is left; after an interruption (``KeyboardInterrupt``,
        ``SystemExit``, ``GeneratorExit``, None), or where all parts are done and only the final
        name is missing, another run can go on.
        """
        if isinstance(error, Exception) and not self.journal.finishing:
            self.discard()
        else:
            self._close()

    def discard(self) -> None:
        """Deletes what was written and the journal."""
        self._wait_for_sync()
        for file in self._files:
            file.delete()
        if not self._finished:
            self.journal.remove()
        self._close()

    def _close(self) -> None:
        self._wait_for_sync()
        for file in self._files:
            file.close()
        self.journal.close()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            if not self._finished:
                self.abort(error)
            return
        try:
            self.finish()
        except BaseException as failed:
            if not self._finished:
                self.abort(failed)
            raise


def _described(file: PartialFile) -> dict[str, Any]:
    return {
        "file": os.path.basename(file.plan.path),
        "size": file.plan.size,
        "header_sha256": hashlib.sha256(file.plan.header).hexdigest(),
    }


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _partials_of(identity: dict[str, Any] | None) -> list[str]:
    """Temporary names of the job that a journal is about, which may have had other files."""
    names = [entry["file"] for entry in (identity or {}).get("output", [])]
    return [name + PARTIAL for name in names if os.path.basename(name) == name]


def _delete(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
