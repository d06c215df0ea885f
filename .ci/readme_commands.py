"""Prints the bash block that README.md holds between `<!-- command: NAME -->` and `<!-- /command -->`.

    python3 .ci/readme_commands.py demo README.md

Anything unexpected (no such mark, two of them, no closing mark, no bash fence, an empty block) ends with exit status 1.
"""

import re
import sys
from pathlib import Path


def command(name: str, text: str) -> str:
    """The lines inside the one ```bash fence of the block `name`."""
    blocks = re.split(rf"^<!-- command: {re.escape(name)} -->[ \t]*$", text, flags=re.MULTILINE)[1:]
    if len(blocks) != 1:
        raise ValueError(f"expected one line '<!-- command: {name} -->', found {len(blocks)}")
    inside, closed, _ = blocks[0].partition("<!-- /command -->")
    if not closed or "<!-- command:" in inside:
        raise ValueError(f"no '<!-- /command -->' closes '<!-- command: {name} -->'")
    fence = re.fullmatch(r"\s*```bash\n(.*?)```\s*", inside, flags=re.DOTALL)
    if fence is None or "```" in fence[1]:
        raise ValueError(f"command {name!r} is not exactly one ```bash block: {inside.strip()!r}")
    if not fence[1].strip():
        raise ValueError(f"command {name!r} is an empty block")
    return fence[1].strip()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} NAME README.md")
    try:
        print(command(sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        sys.exit(f"{sys.argv[2]}: {error}")
