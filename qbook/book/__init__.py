"""What builds and checks the book: the claims ledger, the notebooks' runner, the check of prose."""
