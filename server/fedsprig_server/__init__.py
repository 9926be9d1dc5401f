"""The server side: library, task runs, aggregation and the Flower ServerApp."""
