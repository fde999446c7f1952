"""What a run learns: model, loss, metrics and predictions of each model kind, behind one interface."""
