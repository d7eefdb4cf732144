"""What a cache is, what it knows of its teacher, and whether it still holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fgkd import files
from fgkd.cache.reader import Reader
from fgkd.config import InspectConfig
from fgkd.errors import WrongKind
from fgkd.report import page

from . import console


def inspect(options: InspectConfig, caches: list[str]) -> None:
    """Print each cache; with --verify check it, and exit with 1 if anything is wrong."""
    console.require(caches, "CACHE", "fgkd inspect runs/cache")
    if not options.verify:
        console.refuse_unused(options, ["teacher", "samples"], "without --verify", "add --verify")
    files.claim_option(options.json, "json")
    if options.gallery:
        page.claim(Path(options.gallery), "--gallery")
    reports, failed = [], False
    for path in map(Path, caches):
        _refuse_run(path)
        report = describe(Reader(path))
        reports.append(report)
        for line in [*lines(report), *suspect_lines(report)]:
            console.echo(line)
        if options.verify:
            from .verify import verify

            report["problems"] = verify(path, options)
            failed |= bool(report["problems"])
            for problem in report["problems"]:
                console.echo(f"FAILED  {problem}")
            if not report["problems"]:
                console.echo("verified: every shard is whole, and the sampled views are the same")
    if options.json:
        files.write_json(Path(options.json), reports)
    if options.gallery:
        from . import gallery

        shown = [(report, lines(report)) for report in reports]
        console.echo(f"gallery: {gallery.write(Path(options.gallery), shown, options)}")
    if failed:
        sys.exit(1)


def _refuse_run(path: Path) -> None:
    """Raise WrongKind for a run's folder, with the cache that it learned from if it had one."""
    if not (path / "run.json").is_file() or (path / "identity.json").is_file():
        return
    from fgkd.training import run_folder  # with torch

    cache = run_folder.read(path).parents.cache
    raise WrongKind(f"{path} is a run, not a cache", path=path, found="run", cache=cache)


def describe(reader: Reader) -> dict[str, Any]:
    """The identity without its samples, the sizes, and the teacher's statistics."""
    identity, held = reader.identity.to_json(), reader.manifest
    summary = reader.summary.to_json()
    for suspect in summary["suspects"]:
        suspect |= {name: reader.classes[suspect[name]] for name in ("label", "answer")}
    return {
        "cache": str(reader.folder),
        "identity_sha256": held.identity_sha256,
        **{name: identity[name] for name in ("format", "encoding", "dtype", "teachers")},
        "ensemble": identity["ensemble"],
        "view_recipe": identity["views"],
        "dataset": {k: v for k, v in identity["dataset"].items() if k != "classes"},
        "num_classes": len(reader.classes),
        "samples": len(reader.samples["train"]),
        "val_samples": len(reader.samples["val"]),
        "views": reader.views,
        "shards": len(held.shards),
        "bytes": reader.num_bytes,
        "bad_images": sorted(reader.unreadable_keys),
        "libraries": held.libraries,
        "teacher": summary,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text, but for its suspects."""
    teacher, encoding = report["teacher"], report["encoding"]
    per_view = report["bytes"] / max(1, report["samples"] * report["views"])
    topk = f", top {encoding['top_k']}, T in {encoding['temperatures']}" * bool(encoding["top_k"])
    top1, top5 = teacher["views_top1_pct"], teacher["views_top5_pct"]
    out = [
        f"{report['cache']}  {report['identity_sha256'][:16]}",
        f"  data      {report['dataset']['name']}: {report['num_classes']} classes, "
        f"{report['samples']:,} training images, {report['val_samples']:,} validation images",
        f"  targets   {report['views']} views, {encoding['name']}{topk}, {report['format']}: "
        f"{report['shards']} shards, {files.human_bytes(report['bytes'])} "
        f"({per_view:,.0f} bytes a view)",
        f"  views     {report['view_recipe']['img_size']} px, seed {report['view_recipe']['seed']}",
    ]
    if side := report["view_recipe"]["short_side"]:
        out[-1] += f", of images with a shorter side of {side} px"
    for one in report["teachers"]:
        out.append(
            f"  teacher   {one['architecture']}, {one['img_size']} px, {report['dtype']}, "
            f"weights {one['weights_sha256'][:16]}"
        )
    out.append(
        f"  on views  top-1 {teacher['top1_pct']:.2f} %  top-5 {teacher['top5_pct']:.2f} %  "
        f"ECE {teacher['ece_pct']:.2f} %  entropy {teacher['entropy']:.3f} nats  "
        f"top1/top2 logit ratio {teacher['top1_top2_ratio']:.2f}"
    )
    out.append(
        f"  by view   top-1 {min(top1):.2f} to {max(top1):.2f} %, "
        f"top-5 {min(top5):.2f} to {max(top5):.2f} %"
    )
    if len(teacher["domains"]) > 1:
        for name, part in teacher["domains"].items():
            out.append(
                f"  {name:<9} {part['images']:,} images, top-1 {part['top1_pct']:.2f} %, "
                f"top-5 {part['top5_pct']:.2f} %"
            )
    kls = "  ".join(f"T={t}: {kl:.2e}" for t, kl in teacher["encoding_kl"].items())
    out.append(f"  encoding  KL(teacher || stored) in nats  {kls or 'not on this grid'}")
    if report["bad_images"]:
        out.append(f"  left out  {len(report['bad_images'])} unreadable images")
    return out


def suspect_lines(report: dict[str, Any]) -> list[str]:
    """The doubtful labels as text."""
    suspects, out = report["teacher"]["suspects"][:10], []
    if suspects:
        out.append("  labels that the teacher denies in every view, most confident first:")
    for suspect in suspects:
        out.append(
            f"    {suspect['key']}: labelled {suspect['label']}, teacher says {suspect['answer']} "
            f"(at least {100 * suspect['confidence']:.1f} %)"
        )
    return out
