"""Where finished pictures are kept: in the job store, or in S3. Nothing else knows."""
