"""`python -m amplify.schemas [FOLDER]`: write the schemas."""

import sys
from pathlib import Path

from amplify.schemas import FOLDER, write

write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
