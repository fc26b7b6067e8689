def grid_page(*args):
    return ""
