fn main() {
    let _guard = privilege_guard::GroupGuard::assume_on_thread(1);
}
