"""What `make test` does about servers that are missing, with an apt-get that only takes notes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from install_servers import PACKAGES

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "install_servers.py"

# Runs the script as somebody, with programs found in one folder only and the rule for services in another place.
RUN = """
import os, sys
from pathlib import Path
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import install_servers
install_servers._FOLDERS = ()
install_servers._POLICY = Path(sys.argv[2])
os.geteuid = lambda: int(sys.argv[3])
sys.exit(install_servers.main(sys.argv[4:]))
"""

APT_GET = """#!/bin/sh
echo "$@" >> "$NOTES"
case "$*" in
*download-only*) [ -e "$NOTES.updated" ] || exit 100 ;;
*update*) touch "$NOTES.updated" ;;
*)
    cp "$POLICY" "$NOTES.policy"
    for program in $PROGRAMS; do printf '#!/bin/sh\\n' > "$FOLDER/$program"; chmod 755 "$FOLDER/$program"; done
    ;;
esac
"""


class Machine:
    """A machine with nothing but what the test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.stamp, self.policy, self.notes = folder / "stamp", folder / "policy-rc.d", folder / "notes"

    def have(self, name: str, text: str = "#!/bin/sh\n") -> None:
        program = self.folder / name
        program.write_text(text)
        program.chmod(0o755)

    def run(self, user: int = 0, **more: str) -> str:
        command = [sys.executable, "-c", RUN, str(SCRIPT), str(self.policy), str(user), str(self.stamp)]
        for tool in ("touch", "cp", "chmod"):
            if not (self.folder / tool).exists():
                (self.folder / tool).symlink_to(f"/bin/{tool}")
        environment = {"PATH": str(self.folder), "FOLDER": str(self.folder), "NOTES": str(self.notes), "POLICY": str(self.policy)}
        environment |= {"PROGRAMS": " ".join(PACKAGES.values()), **more}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_missing_servers_are_installed(machine: Machine) -> None:
    """After an update, when the lists are old; and nothing is started meanwhile."""
    machine.have("apt-get", APT_GET)
    machine.have("redis-server")
    said = machine.run()
    calls = machine.notes.read_text().splitlines()
    assert ["update" in call for call in calls] == [False, True, False, False]
    assert ["--download-only" in call for call in calls] == [True, False, True, False]
    wanted = [package for package in PACKAGES if package != "redis-server"]
    assert calls[-1].endswith("--no-install-recommends install " + " ".join(wanted))
    assert Path(f"{machine.notes}.policy").read_text().endswith("exit 101\n")
    assert not machine.policy.exists()
    assert machine.stamp.exists()
    assert "done after" in said


def test_a_rule_for_services_that_exists_is_kept(machine: Machine) -> None:
    machine.have("apt-get", APT_GET)
    machine.policy.write_text("mine")
    machine.run()
    assert machine.policy.read_text() == "mine"
    assert Path(f"{machine.notes}.policy").read_text() == "mine"


@pytest.mark.parametrize("user", [0, 1000])
def test_where_nothing_can_be_installed_it_says_what_is_missing(machine: Machine, user: int) -> None:
    """As root without apt-get, and as somebody else with it."""
    if user:
        machine.have("apt-get", APT_GET)
    said = machine.run(user)
    assert f"apt-get install --no-install-recommends {' '.join(PACKAGES)}" in said
    assert not machine.notes.exists()
    assert not machine.stamp.exists()


def test_an_installation_that_fails(machine: Machine) -> None:
    """It says how to do it by hand, and the policy is taken back; the tests go on without the servers."""
    machine.have("apt-get", APT_GET.replace("cp ", "exit 1; cp "))
    assert "that did not work" in machine.run()
    assert not machine.policy.exists()
    assert not machine.stamp.exists()


def test_turned_off(machine: Machine) -> None:
    machine.have("apt-get", APT_GET)
    assert machine.run(ASTRANET_TEST_SERVERS="no") == ""
    assert not machine.notes.exists()
    assert not machine.stamp.exists()


def test_nothing_is_missing(machine: Machine) -> None:
    for program in PACKAGES.values():
        machine.have(program)
    assert machine.run(1000) == ""
    assert machine.stamp.exists()
