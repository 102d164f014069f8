"""Where results are kept: one file for each profile, model, engine and load, in a folder beside the project."""

from pathlib import Path
from tempfile import NamedTemporaryFile

from edgebuild.bench.result import BenchResult, load_result
from edgebuild.errors import ToolError


class Baselines:
    """A folder of results; the file is what `edgeserve bench --json` wrote, so that it can be compared by hand too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, result: BenchResult) -> Path:
        """Return where a result of this kind is kept."""
        return self._folder / result.baseline_name

    def last(self, result: BenchResult) -> BenchResult | None:
        """Return the result of this kind that was kept last.

        Raises:
            ImageError: The file is damaged.
        """
        path = self.path(result)
        return load_result(path) if path.exists() else None

    def keep(self, result: BenchResult) -> Path:
        """Put a result in the place of the last one of its kind, whole or not at all.

        Raises:
            ToolError: The folder cannot be written.
        """
        path = self.path(result)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self._folder, delete=False, encoding="utf-8") as file:
                file.write(result.document())
            temporary = Path(file.name)
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError as error:
            raise ToolError(
                f"{path}: cannot be written: {error.strerror}",
                hint="give --baselines DIR, or --no-keep",
            ) from error
        return path
