"""Words everyone uses: contracts, data containers, scorecard, seeds, errors."""
