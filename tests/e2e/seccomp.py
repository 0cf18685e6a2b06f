"""Prints, as a container runtime's seccomp profile, the system calls that a unit's SystemCallFilter allows.

Only what the unit of millpond needs: lists of what is allowed, and lists of exceptions after a ~.
"""

import json
import re
import subprocess
import sys


def calls(name):
    """The system calls of a set; of a name that isn't a set's, that call."""
    if not name.startswith("@"):
        return {name}
    shown = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", name],
        capture_output=True, text=True, check=True,
    ).stdout
    members = [line.strip() for line in shown.splitlines()[1:]]
    members = [member for member in members if member and not member.startswith("#")]
    return set().union(*map(calls, members))


def allowed(unit):
    found = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = line.removeprefix("~").split()
        listed = set().union(*map(calls, names))
        found = found - listed if line.startswith("~") else found | listed
    # systemd always allows these.
    return sorted(found | calls("@default"))


names = allowed(open(sys.argv[1]).read())
assert len(names) > 100, names
profile = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
}
json.dump(profile, sys.stdout)
