"""stand-in"""
from pathlib import Path
def champion(home: Path) -> Path | None:
    return None
