"""How many examples the fuzzing tests try: few and always the same in the suite, as many as are asked for otherwise."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("TIDEGATE_FUZZ_EXAMPLES", "0"))


def fuzzing(examples: int) -> settings:
    """`examples` in the suite. With TIDEGATE_FUZZ_EXAMPLES others each time; `--hypothesis-seed` repeats them."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )
