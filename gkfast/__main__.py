"""python -m gkfast"""

import sys

from gkfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
