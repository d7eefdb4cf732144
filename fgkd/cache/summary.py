"""A cache's summary: what it is made of, its size, and how good its teacher is."""

from __future__ import annotations

from typing import Any

from fgkd import files
from fgkd.cache.reader import Reader

SUSPECTS_SHOWN = 10


def describe(reader: Reader) -> dict[str, Any]:
    """The identity without its samples, sizes, and the teacher's statistics, as JSON."""
    identity, held = reader.identity.to_json(), reader.manifest
    summary = reader.summary.to_json()
    for suspect in summary["suspects"]:
        suspect |= {name: reader.classes[suspect[name]] for name in ("label", "answer")}
    return {
        "cache": reader.name,
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
    """The summary as text, without its suspects."""
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
        f"({per_view:,.0f} bytes per view)",
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
    """Images whose label the teacher contradicts in every view, as text."""
    suspects, out = report["teacher"]["suspects"][:SUSPECTS_SHOWN], []
    if suspects:
        out.append("  labels that the teacher contradicts in every view, most confident first:")
    for suspect in suspects:
        out.append(
            f"    {suspect['key']}: labelled {suspect['label']}, teacher says {suspect['answer']} "
            f"(at least {100 * suspect['confidence']:.1f} %)"
        )
    return out
