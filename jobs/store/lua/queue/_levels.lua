local LEVEL = {high = 1, normal = 2, low = 3}
