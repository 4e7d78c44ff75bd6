"""`Network`: a whole network trained for one task, the opponent of a head; saved, loaded, and able to predict."""
