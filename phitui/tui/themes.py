"""phitui's own themes. Colours appear nowhere else: widgets use theme variables only."""

from __future__ import annotations

from textual.theme import Theme

CALM = Theme(
    name="phitui",
    primary="#86aec9",
    secondary="#6d8a9c",
    accent="#d8b27a",
    foreground="#d3d8de",
    background="#14171c",
    surface="#191d23",
    panel="#21262e",
    success="#93bf8d",
    warning="#d8b27a",
    error="#d98880",
    variables={
        "muted": "#838e99",
        "block-cursor-background": "#2c3a47",
        "block-cursor-foreground": "#eef2f5",
        "block-cursor-text-style": "none",
        "block-cursor-blurred-background": "#232a33",
        "block-cursor-blurred-foreground": "#d3d8de",
        "footer-background": "#191d23",
        "footer-key-foreground": "#d8b27a",
        "border": "#3a4552",
        "border-blurred": "#2a313a",
        "scrollbar": "#2f3843",
        "scrollbar-hover": "#3d4a58",
        "scrollbar-active": "#86aec9",
        "scrollbar-background": "#191d23",
        "scrollbar-background-hover": "#191d23",
        "scrollbar-background-active": "#191d23",
        "input-cursor-background": "#d8b27a",
        "input-selection-background": "#86aec9 35%",
    },
)

CONTRAST = Theme(
    name="phitui-contrast",
    primary="#7fd7ff",
    secondary="#ffffff",
    accent="#ffff00",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#1c1c1c",
    success="#5fff5f",
    warning="#ffff00",
    error="#ff8787",
    variables={
        "block-cursor-background": "#ffff00",
        "block-cursor-foreground": "#000000",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#4e4e4e",
        "block-cursor-blurred-foreground": "#ffffff",
        "footer-background": "#1c1c1c",
        "footer-key-foreground": "#ffff00",
        "border": "#ffffff",
        "border-blurred": "#9e9e9e",
        "muted": "#d0d0d0",
    },
)

THEMES = (CALM, CONTRAST)

DEFAULTS = {"muted": "#8a929c"}
"""phitui's own variables, for themes that do not have them."""
