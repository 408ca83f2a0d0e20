"""The little that is special to a family of models: fixed proposals for counting, attributes that repeat a size."""
