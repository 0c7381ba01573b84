"""Make up the result.json of a target, with four methods."""

from __future__ import annotations

from typing import Any

D_FAIL = {"none": 0.0, "finetune": 0.421, "bn_adapt": 0.30, "metarepair": 0.453}
CLEAN = {"none": 0.915, "finetune": 0.890, "bn_adapt": 0.905, "metarepair": 0.911}
CORRUPTED = {"none": 0.512, "finetune": 0.655, "bn_adapt": 0.60, "metarepair": 0.683}


def made_row(method: str, seed: int, target: str) -> dict[str, Any]:
    shift, tasks = 0.01 * (seed - 1) * (method != "none"), method in ("finetune", "metarepair")
    return {
        "method": method,
        "target": target,
        "seed": seed,
        "d_fail": D_FAIL[method] + shift,
        "d_fail_paper": D_FAIL[method] - 0.05 if tasks else None,
        "d_fail_episodes_mean": D_FAIL[method] - 0.02 if tasks else None,
        "d_fail_episodes_sd": 0.013 if tasks else None,
        "validation": 0.4,
        "corrupted": CORRUPTED[method] + shift,
        "corrupted_by_severity": {str(s): CORRUPTED[method] + 0.06 * (3 - s) + shift for s in range(1, 6)},
        "clean": CLEAN[method],
        "clean_before": CLEAN["none"],
        "other_corruptions": {"fog": 0.70, "snow": 0.50},
        "repair_rate": D_FAIL[method] + shift,
        "break_rate": 0.034,
        "break_rate_corrupted": 0.05,
        "calibration_error": 0.087,
        "seconds": 12.5 + seed,
        "images_seen": 123400,
        "gradient_steps": 120,
        "notes": ["inner rate 0.03 chosen on validation"] if tasks else [],
        "weights": f"repaired/{target}/{method}/{seed}/model.safetensors",
    }


def made_result(target: str = "gaussian_noise", seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "config": {"name": "made", "data": {"name": "cifar10"}, "model": {"name": "resnet8_cifar"}},
        "versions": {"metarepair": "0.1.0", "torch": "2.9"},
        "features": "deployed:resnet8_cifar",
        "distance_name": "Fréchet distance in deployed:resnet8_cifar features",
        "experiences": [
            {"name": "shot_noise", "fid": 2.31, "p": 0.61},
            {"name": "glass_blur", "fid": 5.02, "p": 0.27},
            {"name": "snow", "fid": 9.77, "p": 0.12},
        ],
        "confidence": {"rule": "hinge", "alpha": 0.41, "beta": 2.31, "effective_number": 2.4},
        "preparation": {"seconds": 321.5, "episodes": 60},
        "d_collect": {"collect": 1000, "fail": 40, "validation": 201, "classes_without_failures": [7]},
        "methods": [made_row(method, seed, target) for method in D_FAIL for seed in seeds],
    }
