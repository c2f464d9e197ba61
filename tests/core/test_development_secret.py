import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from app.core.development_secret import development_secret

PROJECT = Path(__file__).parents[2]
PROGRAM = (
    "import sys; from pathlib import Path; from app.core.development_secret import development_secret;"
    "print('ready', flush=True); sys.stdin.readline(); print(development_secret(Path(sys.argv[1])).decode())"
)


class TestDevelopmentSecret:
    def test_is_made_once(self, tmp_path: Path) -> None:
        first = development_secret(tmp_path)

        assert development_secret(tmp_path) == first
        assert len(first) >= 32

    def test_differs_between_folders(self, tmp_path: Path) -> None:
        assert development_secret(tmp_path / "a") != development_secret(tmp_path / "b")

    def test_can_be_read_by_its_owner_alone(self, tmp_path: Path) -> None:
        development_secret(tmp_path)

        (file,) = tmp_path.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_makes_the_folder_it_is_kept_in(self, tmp_path: Path) -> None:
        assert development_secret(tmp_path / "not" / "yet")

    def test_is_the_same_for_many_threads_at_once(self, tmp_path: Path) -> None:
        start = Barrier(16)

        def read() -> bytes:
            start.wait()
            return development_secret(tmp_path)

        with ThreadPoolExecutor(16) as pool:
            secrets = {future.result() for future in [pool.submit(read) for _ in range(16)]}

        assert len(secrets) == 1
        assert len(list(tmp_path.iterdir())) == 1

    def test_is_the_same_for_many_processes_at_once(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        processes = [
            subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

        assert len({process.communicate(timeout=20)[0] for process in processes}) == 1
        assert len(list(tmp_path.iterdir())) == 1
