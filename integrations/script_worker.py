"""What a process that a script spawned runs in the place of the script; see `fractal_streams.integrations.script`."""

if __name__ == "__mp_main__":
    from fractal_streams.integrations.script import worker_main

    globals().update(worker_main())
