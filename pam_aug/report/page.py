"""`pam-aug inspect`: one static HTML file that shows what a build made, kept and threw away."""

import html
from collections import defaultdict
from importlib import resources
from pathlib import Path

from pam_aug.report.plots import histogram
from pam_aug.report.removed import RemovedGroup, palm_joints, read_inputs, removed_groups, write_csv
from pam_aug.report.rule import read_rule, rule_text, within_inputs
from pam_aug.report.sheets import cell, hand_icon, sheet
from pam_aug.report.summary import Summary, read_all_candidates, rejected_by_input, summarise
from pam_aug.schema import Candidate
from pam_aug.select import SelectConfig
from pam_aug.shards.atomic import write_atomic
from pam_aug.shards.files import local_folder
from pam_aug.shards.manifest import read_mix
from pam_aug.shards.reader import ShardReader

__all__ = ["write_report"]

_INPUTS_SHOWN = 12
_REAL_SHOWN = 24
_GROUPS_SHOWN = 24


def write_report(folder: Path) -> Path:
    """Write `report/index.html` of a build's folder, images and all in one file, and `removed.csv`. Returns its path.

    Raises ConfigError where the folder holds no finished build.
    """
    folder = local_folder(folder, "inspect")
    summary = summarise(folder)
    rows = read_all_candidates(folder)
    rule = read_rule(folder)
    (folder / "report").mkdir(exist_ok=True)
    sections = [
        _counts(summary),
        _scores(rows),
        _removed(folder, rows, rule),
        _generated(folder, rows),
        _real(folder),
    ]
    template = resources.files("pam_aug.report").joinpath("page.html").read_text(encoding="utf-8")
    page = template.replace("{title}", html.escape(folder.resolve().name)).replace("{body}", "\n".join(sections))
    path = folder / "report" / "index.html"
    write_atomic(path, page.encode())
    return path


def _counts(s: Summary) -> str:
    hands = f"{s.real_hands} hands" + (f", {s.real_failed} unread" if s.real_failed else "")
    tiles = [
        ("images of " + (", ".join(s.real_datasets) or "no dataset"), f"{s.real_images}", hands),
        ("inputs", f"{s.inputs}", f"{s.candidates} candidates"),
        ("kept", f"{s.kept}", f"median error {_mm(s.kept_err_mm)}"),
        ("rejected", f"{s.rejected}", f"median error {_mm(s.rejected_err_mm)}"),
        ("failed", f"{s.failed}", "of the rejected ones"),
        ("ratio", s.ratio, f"epoch of {s.epoch_hands} hands"),
        (
            "reads per epoch",
            f"{s.real_reads_per_epoch:.2f} / {s.synthetic_reads_per_epoch:.2f}",
            "real half / synthetic half",
        ),
    ]
    cells = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span><i>{html.escape(more)}</i></div>'
        for name, value, more in tiles
    )
    notes = "".join(f"<p><b>Note:</b> {html.escape(note)}.</p>" for note in s.notes)
    return f'<div class="tiles">{cells}</div>{notes}'


def _scores(rows: list[Candidate]) -> str:
    if not rows:
        return ""
    split = {"kept": [r for r in rows if r.verdict.kept], "rejected": [r for r in rows if not r.verdict.kept]}
    plots = [
        histogram({k: [r.err_mm for r in v] for k, v in split.items()}, "wrist-aligned error, mm"),
        histogram({k: [r.pa_err_mm for r in v] for k, v in split.items()}, "error after Procrustes alignment, mm"),
        histogram({k: [100 * r.err_2d for r in v] for k, v in split.items()}, "image error, % of the hand's box"),
    ]
    return f'<h2>Scores</h2><p>Candidates by error: {_legend()}</p><div class="plots">{"".join(plots)}</div>'


def _removed(folder: Path, rows: list[Candidate], rule: SelectConfig) -> str:
    if not rows:
        return ""
    inputs = read_inputs(folder)
    groups, middles = removed_groups(rows, inputs, rule)
    write_csv(folder / "report" / "removed.csv", groups)
    hands = [inputs[key].hands[0] for key in middles]
    icons = {f"pose {i + 1}": hand_icon(palm_joints(h.joints_cam_m, h.side)) for i, h in enumerate(hands)}
    titles = {
        "pose": ("By pose", "inputs whose fingers stand alike, and the hand in their middle, palm side"),
        "object": ("By object", ""),
        "camera": ("By camera", ""),
        "error": ("By wrist-aligned error", "tenths of the scored candidates"),
    }
    both = within_inputs(rule)
    tables = "".join(
        _group_table(title, [g for g in groups if g.kind == kind], icons, both) for kind, title in titles.items()
    )
    return (
        f"<h2>What was removed</h2><p>{rule_text(rule)}</p>"
        f"<p>{_legend()}. The same numbers are in <code>report/removed.csv</code>.</p>"
        f'<div class="removed">{tables}</div>{_removed_by_input(rows)}'
    )


def _group_table(title: tuple[str, str], groups: list[RemovedGroup], icons: dict[str, str], both: bool) -> str:
    lines = "".join(
        f"<tr><td>{icons.get(g.group, '')}{html.escape(g.group)}</td><td>{g.inputs}</td><td>{g.candidates}</td>"
        f'<td><div class="bar"><i class="rejected" style="width:{100 * g.removed_share:.1f}%"></i></div></td>'
        f"<td>{g.removed_share:.0%}</td>{f'<td>{g.one_cut_share:.0%}</td>' if both else ''}"
        f"<td>{_mm(g.err_mm)}</td></tr>"
        for g in groups[:_GROUPS_SHOWN]
    )
    more = len(groups) - _GROUPS_SHOWN
    rest = f"<p>{more} more groups are in removed.csv.</p>" if more > 0 else ""
    return (
        f"<section><h3>{html.escape(title[0])} <small>{html.escape(title[1])}</small></h3>"
        "<table><thead><tr><th></th><th>inputs</th><th>candidates</th><th colspan=2>removed</th>"
        f"{'<th>one cut</th>' if both else ''}<th>median error</th></tr></thead><tbody>{lines}</tbody></table>"
        f"{rest}</section>"
    )


def _removed_by_input(rows: list[Candidate]) -> str:
    errors: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        errors[row.input_key].append(row.err_mm)
    lines = []
    for key, (kept, rejected) in sorted(rejected_by_input(rows).items(), key=lambda kv: -min(errors[kv[0]])):
        finite = sorted(e for e in errors[key] if e != float("inf"))
        span = f"{finite[0]:.1f} – {finite[len(finite) // 2]:.1f} – {finite[-1]:.1f}" if finite else "none scored"
        lines.append(f"<tr><td>{html.escape(key)}</td><td>{kept}</td><td>{rejected}</td><td>{span}</td></tr>")
    table = (
        "<table><thead><tr><th>input</th><th>kept</th><th>rejected</th><th>error, mm: least – median – most</th></tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table>"
    )
    summary = f"by input: {len(lines)}, by their best candidate's error, hardest first"
    return f"<details><summary>{summary}</summary>{table}</details>"


def _generated(folder: Path, rows: list[Candidate]) -> str:
    keys = list(rejected_by_input(rows))
    if not keys:
        return ""
    step = max(len(keys) / _INPUTS_SHOWN, 1.0)
    shown = {keys[int(i * step)] for i in range(min(len(keys), _INPUTS_SHOWN))}
    verdicts = {row.key: row for row in rows if row.input_key in shown}
    cells: dict[str, dict[int, str]] = defaultdict(dict)
    for path in [*sorted((folder / "shards").glob("syn-*.tar")), *sorted((folder / "rejected").glob("*.tar"))]:
        with ShardReader(path) as reader:
            for i, key in enumerate(reader.keys):
                row = verdicts.get(key)
                if row is None:
                    continue
                kind = "kept" if row.verdict.kept else "rejected"
                caption = f"@{row.index:02d}  {row.verdict.reason or _mm(row.err_mm)}"
                cells[row.input_key][row.index] = cell(reader.image(i), reader.sample(i).hands, caption, kind)
    sheets = [
        sheet(
            key, f"{sum(r.verdict.kept for r in verdicts.values() if r.input_key == key)} kept", _in_order(cells[key])
        )
        for key in keys
        if key in shown
    ]
    return (
        f"<h2>Candidates</h2><p>{len(sheets)} of {len(keys)} inputs. {_legend()} "
        '<label><input type="checkbox" id="skeleton" checked> skeletons</label> '
        '<label><input type="checkbox" id="kept" checked> kept</label> '
        '<label><input type="checkbox" id="rejected" checked> rejected</label></p>' + "".join(sheets)
    )


def _real(folder: Path) -> str:
    source = next((s for s in read_mix(folder).sources if s.name == "real"), None)
    cells: list[str] = []
    names: set[str] = set()
    for shard in source.shards if source else ():
        if len(cells) >= _REAL_SHOWN:
            break
        with ShardReader(folder / shard.path) as reader:
            for i in range(min(len(reader), _REAL_SHOWN - len(cells))):
                sample = reader.sample(i)
                names.add(sample.source.dataset)
                cells.append(cell(reader.image(i), sample.hands, sample.source.name, "real"))
    if not cells or source is None:
        return ""
    return "<h2>The real half</h2>" + sheet(", ".join(sorted(names)), f"{len(cells)} of {source.samples} images", cells)


def _in_order(cells: dict[int, str]) -> list[str]:
    return [cells[i] for i in sorted(cells)]


def _legend() -> str:
    return '<span class="key kept"></span> kept <span class="key rejected"></span> rejected'


def _mm(value: float) -> str:
    return f"{value:.1f} mm" if 0 <= value < float("inf") else "not scored"
