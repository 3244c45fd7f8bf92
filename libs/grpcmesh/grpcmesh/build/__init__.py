"""What is made of the contract before anything runs: `plugin`, by protoc, and `breaking`, by those who change it."""
