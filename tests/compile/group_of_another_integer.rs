fn main() {
    let group: u16 = 1004;
    let _guard = privilege_guard::GroupGuard::assume_on_thread(group);
}
