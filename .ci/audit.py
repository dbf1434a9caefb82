"""Look the installed packages up in the database of known weaknesses.

Ends with 0 where all were looked up and none is weak, 1 where one is, 2 where the database could not be asked. A
package that it does not know counts as not asked, except a local build (`torch 2.13.0+cpu`), which no index lists.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> None:
    """Run pip-audit and say what it found."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    try:
        found = json.loads(ran.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        sys.stderr.write(ran.stderr[-2000:])
        sys.stderr.write("\naudit: pip-audit gave no answer; is the database out of reach?\n")
        sys.exit(2)
    weak = [package for package in found if package.get("vulns")]
    for package in weak:
        for one in package["vulns"]:
            mended = ", ".join(one["fix_versions"]) or "no release yet"
            sys.stdout.write(f"{package['name']} {package['version']}: {one['id']}, mended in {mended}\n")
    skipped = {package["name"]: package["skip_reason"] for package in found if "skip_reason" in package}
    unknown = [name for name, reason in skipped.items() if "+" not in reason and "editable" not in reason]
    looked_up = len(found) - len(skipped)
    sys.stdout.write(f"{looked_up} packages looked up, {len(weak)} weak, {len(unknown)} not found\n")
    if weak:
        sys.exit(1)
    if unknown:
        sys.stderr.write(f"audit: not an answer, for these were not found: {', '.join(unknown[:10])}, …\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
