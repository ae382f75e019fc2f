package store_test

const crashDirEnv = "SHOAL_STORE_CRASH_DIR"

func crashChild(dir string) {}
