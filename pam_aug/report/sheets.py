"""Contact sheets: thumbnails as data URIs, with the label's skeleton drawn over them as SVG."""

import base64
import html

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8

from pam_aug.hand.joints import BONES
from pam_aug.schema import Hand

__all__ = ["cell", "hand_icon", "sheet"]

_THUMB_PX, _ICON_PX = 148, 52
_FINGER_COLOURS = ("#e6194b", "#f58231", "#3cb44b", "#4363d8", "#b24bd6")  # thumb to little finger


def cell(image: UInt8[np.ndarray, "h w 3"], hands: tuple[Hand, ...], caption: str, kind: str) -> str:
    """One image with its hands' skeletons. `kind` ("kept", "rejected", "real") is the CSS class of its frame."""
    h, w = image.shape[:2]
    scale = _THUMB_PX / max(h, w)
    size = (max(round(w * scale), 1), max(round(h * scale), 1))
    thumb = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    data = base64.b64encode(simplejpeg.encode_jpeg(np.ascontiguousarray(thumb), quality=82)).decode()
    lines = "".join(_skeleton(np.asarray(hand.joints_px, float) * scale) for hand in hands)
    return (
        f'<figure class="{kind}"><div class="image">'
        f'<img alt="" width="{size[0]}" height="{size[1]}" src="data:image/jpeg;base64,{data}">'
        f'<svg width="{size[0]}" height="{size[1]}" aria-hidden="true">{lines}</svg></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def sheet(title: str, subtitle: str, cells: list[str]) -> str:
    """A titled row of cells that wraps."""
    head = f"<h3>{html.escape(title)} <small>{html.escape(subtitle)}</small></h3>"
    return f'<section class="sheet">{head}<div class="cells">{"".join(cells)}</div></section>'


def hand_icon(palm: Float[np.ndarray, "21 3"]) -> str:
    """A small drawing of a pose as `palm_joints` gives it: fingers up, index finger to the right."""
    points = palm[:, :2] * [1.0, -1.0]
    low, high = points.min(0), points.max(0)
    scale = (_ICON_PX - 8) / max(float((high - low).max()), 1e-6)
    lines = _skeleton((points - (low + high) / 2) * scale + _ICON_PX / 2)
    return f'<svg class="icon" width="{_ICON_PX}" height="{_ICON_PX}" aria-hidden="true">{lines}</svg>'


def _skeleton(joints_px: Float[np.ndarray, "21 2"]) -> str:
    parts = []
    for child, parent in enumerate(BONES):
        if parent < 0:
            continue
        (x0, y0), (x1, y1) = joints_px[parent], joints_px[child]
        colour = _FINGER_COLOURS[(child - 1) // 4]
        parts.append(f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}"/>')
    return "".join(parts)
