"""What all tests share."""

import os
import tempfile

# The weights that ship are tested, not those that whoever runs the tests has trained.
os.environ["HYBRID_CHECKPOINTS"] = os.path.join(tempfile.gettempdir(), "no-checkpoints-here")  # noqa: PTH118
