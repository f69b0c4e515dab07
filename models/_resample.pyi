def crop(
    source: object,
    width: int,
    height: int,
    x_starts: object,
    x_weights: object,
    y_starts: object,
    y_weights: object,
    height_first: bool,
    out: object,
    /,
) -> None: ...
