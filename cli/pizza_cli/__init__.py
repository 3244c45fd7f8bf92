"""The pizza shop's command line: a gRPC client that knows the contract and nothing else of the shop."""
