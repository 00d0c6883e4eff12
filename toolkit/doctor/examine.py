"""`toolkit doctor`: all checks, one after another."""

from toolkit.doctor.checks import (
    TORCH,
    check_cache,
    check_cores,
    check_cuda,
    check_default_data,
    check_devices,
    check_disk,
    check_memory,
    check_packages,
    check_providers,
    check_python,
    check_shared_memory,
    check_twin_runtimes,
)
from toolkit.doctor.diagnosis import Check, Diagnosis
from toolkit.machine import hardware


def examine(*, deep: bool = False) -> Diagnosis:
    """Run all checks. This takes a few seconds, because devices and providers really compute.

    `deep` makes the working devices do more, for another 20 s or so.
    """
    gpus = hardware.visible_gpus()
    checks: tuple[Check, ...] = (
        check_python(),
        check_packages(),
        *check_twin_runtimes(bool(gpus)),
        check_cores(),
        check_memory(),
        check_shared_memory(),
        *check_devices(gpus),
        *check_cuda(),
        *check_providers(bool(gpus)),
        check_cache(),
        check_disk(),
        check_default_data(),
    )
    if deep:
        from toolkit.doctor.deep import examine_at_work

        working = [
            check.name.removeprefix(TORCH) for check in checks if check.name.startswith(TORCH) and check.status == "ok"
        ]
        checks += tuple(examine_at_work(working))
    return Diagnosis(checks, hardware.describe_hardware(), hardware.describe_versions())
