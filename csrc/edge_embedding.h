// What a force field knows of an edge, and its derivatives, in double precision. Formula: se3_fast/layers/edge_embedding.py.

#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace se3_fast {

// How a harmonic is made of those of the degree before: Y[out] += coefficient * Y[before] * direction[axis]. Harmonics are counted
// over all degrees; a degree's terms stand behind those of the degree before.
struct HarmonicTerm {
    int64_t before, axis, out;
    double coefficient;
};

class EdgeEmbedding {
public:
    EdgeEmbedding(const std::vector<HarmonicTerm>& terms, int64_t num_harmonics, double cutoff, int64_t power)
        : terms_(terms), harmonics_(num_harmonics), of_harmonics_(num_harmonics), cutoff_(cutoff), power_(double(power)) {}

    // Harmonics [.], Bessel functions [inputs] and their derivatives by the length, of an edge.
    template <typename T>
    void embed(const T* rel_pos, const T* frequencies, int64_t inputs, T* harmonics, T* radial, T* slopes) {
        place(rel_pos);
        for (std::size_t index = 0; index < harmonics_.size(); ++index) harmonics[index] = T(harmonics_[index]);
        const double scale = 2 * std::sqrt(2 / cutoff_), last = length_ < cutoff_ ? std::pow(length_ / cutoff_, power_ - 1) : 1;
        const double envelope = envelope_of(last), envelope_slope = slope_of(last);
        for (int64_t number = 0; number < inputs; ++number) {
            const double frequency = PI * double(frequencies[number]);
            double value = frequency, slope = 0;  // of an edge without length
            if (!is_point_) {
                const double wave = std::sin(frequency * length_) / length_;
                value = envelope * wave;
                slope = envelope * (frequency * std::cos(frequency * length_) - wave) / length_ + envelope_slope * wave;
            }
            radial[number] = is_beyond() ? T(0) : T(scale * value);
            slopes[number] = is_beyond() ? T(0) : T(scale * slope);
        }
    }

    // The gradient by the relative position from those of harmonics and Bessel functions.
    template <typename T>
    void differentiate(const T* rel_pos, const T* slopes, int64_t inputs, const T* of_harmonics, const T* of_radial, T* of_rel_pos) {
        place(rel_pos);
        for (std::size_t index = 0; index < harmonics_.size(); ++index) of_harmonics_[index] = double(of_harmonics[index]);
        double of_direction[3] = {0, 0, 0}, of_length = 0, along = 0;
        for (auto term = terms_.rbegin(); term != terms_.rend(); ++term) {
            const double given = term->coefficient * of_harmonics_[term->out];
            of_harmonics_[term->before] += given * direction_[term->axis];
            of_direction[term->axis] += given * harmonics_[term->before];
        }
        for (int axis = 0; axis < 3; ++axis) of_direction[axis] += SQUARE_ROOT_OF_3 * of_harmonics_[1 + axis];
        for (int64_t number = 0; number < inputs; ++number) of_length += double(slopes[number]) * double(of_radial[number]);
        for (int axis = 0; axis < 3; ++axis) along += direction_[axis] * of_direction[axis];
        for (int axis = 0; axis < 3; ++axis) {
            const double turned = is_point_ ? of_direction[axis] : (of_direction[axis] - along * direction_[axis]) / length_;
            of_rel_pos[axis] = T(turned + of_length * direction_[axis]);
        }
    }

    // The derivatives of harmonics and Bessel functions along a direction of the relative position.
    template <typename T>
    void embed_along(const T* rel_pos, const T* slopes, int64_t inputs, const T* direction, T* harmonics, T* radial) {
        place(rel_pos);
        double length_dot = 0, direction_dot[3];
        for (int axis = 0; axis < 3; ++axis) length_dot += direction_[axis] * double(direction[axis]);
        for (int axis = 0; axis < 3; ++axis) direction_dot[axis] = (double(direction[axis]) - length_dot * direction_[axis]) / length_;
        std::vector<double>& dots = of_harmonics_;
        for (std::size_t index = 0; index < dots.size(); ++index)
            dots[index] = index > 0 && index < 4 ? SQUARE_ROOT_OF_3 * direction_dot[index - 1] : 0;
        for (const HarmonicTerm& term : terms_)
            dots[term.out] += term.coefficient *
                              (dots[term.before] * direction_[term.axis] + harmonics_[term.before] * direction_dot[term.axis]);
        for (std::size_t index = 0; index < dots.size(); ++index) harmonics[index] = T(dots[index]);
        for (int64_t number = 0; number < inputs; ++number) radial[number] = T(double(slopes[number]) * length_dot);
    }

private:
    static constexpr double PI = 3.14159265358979323846, SQUARE_ROOT_OF_3 = 1.7320508075688772935;

    const std::vector<HarmonicTerm>& terms_;
    std::vector<double> harmonics_, of_harmonics_;
    double cutoff_, power_;
    double length_ = 0, direction_[3] = {};  // 1 and zero for an edge without length
    bool is_point_ = false;

    template <typename T>
    void place(const T* rel_pos) {
        double square = 0;
        for (int axis = 0; axis < 3; ++axis) square += double(rel_pos[axis]) * double(rel_pos[axis]);
        is_point_ = square == 0;
        length_ = is_point_ ? 1 : std::sqrt(square);
        for (int axis = 0; axis < 3; ++axis) direction_[axis] = double(rel_pos[axis]) / length_;
        harmonics_[0] = 1;
        for (std::size_t index = 1; index < harmonics_.size(); ++index)
            harmonics_[index] = index < 4 ? SQUARE_ROOT_OF_3 * direction_[index - 1] : 0;
        for (const HarmonicTerm& term : terms_)
            harmonics_[term.out] += term.coefficient * harmonics_[term.before] * direction_[term.axis];
    }

    bool is_beyond() const { return !is_point_ && length_ >= cutoff_; }

    // u of t = length / cutoff, and its derivative by the length; last: t^(p-1).
    double envelope_of(double last) const {
        const double t = length_ / cutoff_, p = power_;
        return 1 - last * t * ((p + 1) * (p + 2) / 2 - t * (p * (p + 2) - t * (p * (p + 1) / 2)));
    }

    double slope_of(double last) const {
        const double t = length_ / cutoff_, p = power_;
        return -p * (p + 1) * (p + 2) / 2 * last * (1 - t) * (1 - t) / cutoff_;
    }
};

}  // namespace se3_fast
