"""Three methods, each added in one file by `register_method`, as somebody outside the package would."""
