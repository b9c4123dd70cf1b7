"""RecBole beside us: our splits as its files, its models in their own environment, its lists under our metrics."""
