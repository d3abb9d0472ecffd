"""All fuzzing tests again and again, each time with other examples, for so many minutes or until one fails.

`python -m tests.fuzz MINUTES`. The seed of a round is written before it: with it the same round runs again.
"""

import os
import secrets
import subprocess
import sys
import time

ROUND = 2000  # examples of each test


def main() -> int:
    minutes = float(sys.argv[1])
    ends = time.monotonic() + 60 * minutes
    environment = {**os.environ, "TIDEGATE_FUZZ_EXAMPLES": str(ROUND)}
    rounds = 0
    while time.monotonic() < ends:
        seed = secrets.randbelow(2**32)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "fuzz", "--timeout=0", f"--hypothesis-seed={seed}"]
        print(f"round {rounds + 1}: TIDEGATE_FUZZ_EXAMPLES={ROUND} {' '.join(command[1:])}", flush=True)  # noqa: T201
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            return code
        rounds += 1
    print(f"{rounds} rounds of {ROUND} examples a test, and nothing found")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
