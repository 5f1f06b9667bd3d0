r"""What LaTeX's macros and characters are as plain text, as pylatexenc has it."""

# ruff: noqa: RUF001  (characters that look alike are the point)
from __future__ import annotations

LIGATURES = {"---": "—", "--": "–", "``": "“", "''": "”"}
MATRICES = ("matrix", "pmatrix", "bmatrix", "array", "smallmatrix", "psmallmatrix", "bsmallmatrix")

SYMBOLS = {
    "pi": "π", "infty": "∞", "cdot": "·", "times": "×", "div": "÷", "pm": "±", "mp": "∓", "cup": "∪", "cap": "∩",
    "setminus": "∖", "in": "∈", "notin": "∉", "subset": "⊂", "subseteq": "⊆", "emptyset": "∅", "varnothing": "∅",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "neq": "≠", "approx": "≈", "equiv": "≡", "sim": "∼",
    "to": "→", "rightarrow": "→", "Rightarrow": "⇒", "mid": "|", "angle": "∠", "circ": "∘", "prime": "'",
    "dots": "…", "ldots": "…", "cdots": "⋯", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "langle": "⟨", "rangle": "⟩", "sum": "∑", "prod": "∏", "int": "∫", "partial": "∂", "nabla": "∇", "forall": "∀",
    "exists": "∃", "neg": "¬", "land": "∧", "lor": "∨", "perp": "⟂", "parallel": "∥",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "varepsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "phi": "ϕ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ",
    "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
    "quad": "  ", "qquad": "    ",
    **{name: name for name in (
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log",
        "lg", "exp", "min", "max", "gcd", "lim", "sup", "inf", "det", "dim", "deg", "arg", "ker",
    )},
}  # fmt: skip
CHARACTERS = {
    **dict.fromkeys(",;: ", " "),
    **{character: character for character in "{}$%&_#"},
    "\\": "\n",
}
ALPHABETS = {
    "mathbf": "BOLD",
    "mathit": "ITALIC",
    "mathbb": "DOUBLE-STRUCK",
    "mathcal": "SCRIPT",
    "mathscr": "SCRIPT",
    "mathfrak": "FRAKTUR",
    "mathsf": "SANS-SERIF",
    "mathtt": "MONOSPACE",
}
"""Letters of another alphabet are other letters: `\\mathbb{R}` is not `R`."""
SILENT = {"color": 1, "textcolor": 1, "hspace": 1, "vspace": 1, "mbox": 1, "label": 1}
"""Macros whose first arguments are not shown."""
