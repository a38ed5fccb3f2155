"""The tutorial, its half with Django: every block runs as it stands on the page, in its order, and says what the page
says. The half in SQL is tested by tests/it/tutorial.rs, in the same way."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest

from conftest import NUMBERS, SERVER
from servers import PROGRAM, ROOT, Server

PAGE = ROOT / "docs/tutorial.md"
# What the page has in place of the reader's own database.
ADDRESS = "postgres://postgres@localhost/shop"
ENDINGS = {"python": ".py", "toml": ".toml", "sql": ".sql"}
# How long it is looked for what is to come.
PATIENCE_SECONDS = 300


@dataclass
class Block:
    line: int
    # The heading of the second level that it stands under.
    part: str
    # The paragraph before it, empty behind another block.
    intro: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is, named in the line before it with the ending of its language."""
        names = re.findall("`(.*?)`", self.intro.rpartition("\n")[2])
        ending = ENDINGS.get(self.language)
        return next((name for name in names if ending and name.endswith(ending)), None)

    @property
    def repeated(self) -> bool:
        """It is to be run again until it says what is shown."""
        return "Look until" in self.intro


def blocks() -> list[Block]:
    found: list[Block] = []
    part = ""
    before = ""
    # A fence, its block and the text before it, in turn.
    page = PAGE.read_text()
    for block in re.finditer(r"((?:^(?!```).*\n)*)^```(.*)\n((?:^(?!```$).*\n)*)^```$", page, re.MULTILINE):
        before, language, text = block.groups()
        headings = re.findall("^## (.*)", before, re.MULTILINE)
        part = headings[-1] if headings else part
        intro = before.strip().rpartition("\n\n")[2]
        found.append(Block(page[: block.start(2)].count("\n") + 1, part, intro, language, text))
    assert page.count("```") == 2 * len(found)
    return found


def plain(text: str) -> list[str]:
    """The lines without what differs from one run to the next: numbers, with what they count, and widths."""
    lines = []
    for line in text.splitlines():
        words = [
            "#" if re.fullmatch(r"[(~]*\d.*|B|kB|MB|GB|ms|s|[-+]+", word) else word for word in line.split()
        ]
        # A duration of one word or of two, a reading or none.
        lines.append(re.sub("#( #)+", "#", " ".join(words)))
    return [line for line in lines if line]


def is_as_shown(said: str, shown: str, repeated: bool = False) -> bool:
    """A line of three dots stands for any lines. The lines of what is on its way may have a note."""
    end = "(?: .*)?\n" if repeated else "\n"
    pattern = "".join("(?:.*\n)*" if line == "..." else re.escape(line) + end for line in plain(shown))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in plain(said))) is not None


class Shell:
    """The reader's shell, one for the whole page: it has the variables and the jobs of the blocks before."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.folder = folder
        own = ("BACKFILLD", "PG", "PSQL", "DATABASE_URL", "DJANGO", "SHOP", "PYTHONPATH")
        path = [Path(sys.executable).parent, PROGRAM.parent, Path(server.psql).parent, os.environ["PATH"]]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
            "PATH": ":".join(map(str, path)),
            "LC_ALL": "C.UTF-8",
            "BACKFILLD__HTTP__LISTEN": "127.0.0.1:0",
        }
        # At the end of its input, which also comes when this process dies, all that it has left in the background goes.
        self.bash = subprocess.Popen(
            ["sh", "-c", "bash --noprofile --norc; kill -KILL 0"], start_new_session=True,
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        # A command that fails is told, also in the middle of a block.
        self.tell("exec 3>&1; trap 'echo $? >&3' ERR")

    def tell(self, text: str) -> None:
        assert self.bash.stdin
        self.bash.stdin.write(f"{text}\n")
        self.bash.stdin.flush()

    def run(self, script: str) -> tuple[str, list[str]]:
        """Run a script; returns what it says, and the codes other than 0 that its commands left with."""
        assert self.bash.stdout
        self.tell(f"{{\n{script}\n}} >said 2>&1 </dev/null\necho done >&3")
        codes = []
        too_long = Timer(PATIENCE_SECONDS, os.killpg, (self.bash.pid, signal.SIGKILL))
        too_long.start()
        for line in self.bash.stdout:
            if line == "done\n":
                break
            codes.append(line.strip())
        else:
            codes.append(f"the shell has ended, or took more than {PATIENCE_SECONDS} s")
        too_long.cancel()
        return (self.folder / "said").read_text(), codes

    def log(self) -> str:
        log = self.folder / "backfilld.log"
        return log.read_text() if log.exists() else ""

    def stop(self) -> None:
        assert self.bash.stdin
        self.bash.stdin.close()
        self.bash.wait()


def script(block: Block, url: str, folder: Path) -> str:
    """What the reader of this block gives to the shell."""
    if block.language == "sh":
        return block.text.replace(ADDRESS, url)
    (folder / "typed").write_text(block.text)
    return 'psql -X -v ON_ERROR_STOP=1 "$DATABASE_URL" <typed'


def run(block: Block, shown: Block | None, url: str, shell: Shell) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        said, codes = shell.run(script(block, url, shell.folder))
        expected = re.findall("# leaves with (.*)", block.text)
        assert codes == expected, f"{PAGE}:{block.line}: exit codes\n{said}\n{shell.log()}"
        if shown is None or is_as_shown(said, shown.text, block.repeated):
            return
        told = f"{PAGE}:{shown.line}: shown is\n{shown.text}\nbut said was\n{said}\n{shell.log()}"
        assert block.repeated and time.monotonic() < end, told


def write(block: Block, file: Path) -> None:
    at_the_end = block.intro.rpartition("\n")[2].startswith("At the end of")
    with file.open("a" if at_the_end else "w") as out:
        out.write(block.text)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database."""
    server = request.config.stash[SERVER]
    name = f"test_{next(NUMBERS)}"
    server.run_psql("postgres", f"CREATE DATABASE {name} TEMPLATE template0").check_returncode()
    yield server.url(name)
    server.run_psql("postgres", f"DROP DATABASE {name} WITH (FORCE)").check_returncode()


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(request.config.stash[SERVER], tmp_path)
    yield shell
    shell.stop()


def test_every_block_with_django_runs_as_it_stands(url: str, shell: Shell) -> None:
    rest = [block for block in blocks() if block.part != "With SQL"]
    assert len(rest) > 30, f"{len(rest)} blocks were found"
    while rest:
        block = rest.pop(0)
        assert block.part in ("Before", "With Django"), f"{PAGE}:{block.line}: in no part"
        if block.file:
            write(block, shell.folder / block.file)
            continue
        assert block.language in ("sh", "sql"), f"{PAGE}:{block.line}: nobody runs this block: {block.language}"
        is_shown = rest and rest[0].language == "text" and not rest[0].intro
        run(block, rest.pop(0) if is_shown else None, url, shell)


def test_what_is_shown_is_told_from_what_is_not() -> None:
    assert is_as_shown("a  12,3 kB\nb\n", "a 4 ms\nb\n")
    assert not is_as_shown("a 1\nb\n", "a 1\n")
    assert not is_as_shown("a 1\n", "b 1\n")
    assert is_as_shown("x\na 1\nb\nc\n", "...\na 2\nb\n...\n")
    assert not is_as_shown("x\na\ny\nb\n", "...\na\nb\n...\n")
    assert is_as_shown("a running 3 % note\n", "a running 1 %\n", repeated=True)
    assert not is_as_shown("a running 3 % note\n", "a running 1 %\n")
