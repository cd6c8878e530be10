"""Types that many modules write."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
AnyArray = NDArray[Any]  # float64; complex128 where a complex step passes through
